"""The principal on whose behalf the current call runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar

from services.identity.principal import ANYBODY, Principal

Check = Callable[[], Awaitable[None]]
"""Checks a credential; raises a `services.rpc.errors.RequestError` if its owner may not make the call any more."""

_CALLER: ContextVar[Principal] = ContextVar("caller", default=ANYBODY)
_CHECK: ContextVar[Check | None] = ContextVar("check", default=None)


def caller() -> Principal:
    """Return who made the call that the current task serves; `ANYBODY` where no credentials are checked."""
    return _CALLER.get()


def act_for(principal: Principal, check: Check | None = None) -> None:
    """Let the current task serve a call of this principal. Tasks that it starts from now on inherit that.

    Args:
        check: checks the credential of the call once more; None: there is none.
    """
    _CALLER.set(principal)
    _CHECK.set(check)


async def check_again() -> None:
    """Check the credential of the current call once more: a call that lasts must not outlive its credential.

    Raises:
        UnauthenticatedError: the credential is not valid any more.
        PermissionDeniedError: it does not carry the right any more.
    """
    check = _CHECK.get()
    if check is not None:
        await check()
