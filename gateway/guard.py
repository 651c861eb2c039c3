"""The guard of the gateway: whoever has no valid credential is answered before anything else is read."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http_errors import INVALID, HttpError, unauthenticated
from services.audit import EventKind, Outcome, note
from services.http.credential import authorization_of, peer_of
from services.identity.authenticator import AUTHORIZATION, MAX_CHARACTERS
from services.identity.principal import Right
from services.identity.refusal import Cause, CredentialError
from services.rpc.caller import act_for
from services.rpc.guard import Authenticates
from services.shown import clipped

OPEN_PATHS = frozenset({"/health", "/ping"})
"""Paths that everybody may ask: probes of orchestrators have no credential."""
POLICY_VIOLATION = 1008
"""Code with which a WebSocket is closed (RFC 6455): none is served here."""


class Guard:
    """Lets a request through if its caller may generate; it is ASGI middleware outside of everything that reads bodies.

    Every path but those in `OPEN_PATHS` needs a credential, also those that are not served, so that no other spelling
    of a path leads around the guard.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticates) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            failure = await self._refusal(scope)
            if failure is not None:
                await JSONResponse(failure.body, failure.status, failure.headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope) -> HttpError | None:
        """Return the answer to a request that may not be served; None if it may. Its principal is then `caller()`."""
        target = clipped(f"{scope['method']} {scope['path']}", 128)
        try:
            principal = await self._authenticator.authenticate(authorization_of(scope))
        except CredentialError as error:
            missing = error.cause is Cause.MISSING
            detail = f"credential {error.cause.value}"
            note(EventKind.AUTHENTICATION, Outcome.REFUSED, target, peer=peer_of(scope), detail=detail)
            return unauthenticated("no API key was given" if missing else "the API key or token is not valid")
        if not principal.may(Right.GENERATE):
            needs = f"needs the right to {Right.GENERATE.value}"
            note(EventKind.PERMISSION, Outcome.REFUSED, target, who=principal, peer=peer_of(scope), detail=needs)
            return HttpError(403, INVALID, "permission_denied", "the credential does not carry the right to do this")
        act_for(principal)
        return None


def passed_on(scope: Scope) -> dict[str, str]:
    """Return the metadata that carry a client's credential to the router, which decides about it.

    What no router would take for a credential stays here: metadata have less room than HTTP headers.
    """
    given = authorization_of(scope)
    if given is None or len(given) > MAX_CHARACTERS or not (given.isascii() and given.isprintable()):
        return {}
    return {AUTHORIZATION: given}
