"""The principal on whose behalf the current call runs."""

from __future__ import annotations

from contextvars import ContextVar

from services.identity.principal import ANYBODY, Principal

_CALLER: ContextVar[Principal] = ContextVar("caller", default=ANYBODY)


def caller() -> Principal:
    """Return who made the call that the current task serves; `ANYBODY` where no credentials are checked."""
    return _CALLER.get()


def act_for(principal: Principal) -> None:
    """Let the current task serve a call of this principal. Tasks that it starts from now on inherit that."""
    _CALLER.set(principal)
