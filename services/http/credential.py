"""The credential of an HTTP request."""

from __future__ import annotations

from starlette.types import Scope

AUTHORIZATION = b"authorization"


def authorization_of(scope: Scope) -> str | None:
    """Return the value of the `authorization` header of a request; None: it has none.

    Several are joined as HTTP joins them, which is no credential: a proxy in front may have looked at another one.
    """
    found = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == AUTHORIZATION]
    return ", ".join(found) if found else None


def peer_of(scope: Scope) -> str:
    """Return the host that a request came from, which may be a proxy's; empty if it is not known."""
    client = scope.get("client")
    return str(client[0]) if client else ""
