"""The guard of the console: only whoever may observe sees anything, by a header or after signing in with a browser."""

from __future__ import annotations

import asyncio
import html
import math
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.observability.console.headers import HEADERS, problem
from router.observability.console.sessions import SESSION_S, LoginLimit, Sessions
from services.audit import EventKind, Outcome, note
from services.http.credential import authorization_of, peer_of
from services.identity.principal import ANYBODY, Principal, Right
from services.identity.refusal import CredentialError
from services.rpc.guard import Authenticates

LOGIN, LOGOUT = "/login", "/logout"
OPEN_PATHS = frozenset({"/static/style.css", "/static/icon.svg"})
"""Paths that everybody may get: what the page for signing in looks like."""
MAX_FORM_BYTES = 16 * 1024
"""Bytes of the form for signing in at most; a credential has at most 8 KiB."""
FORM_TIMEOUT_S = 10.0
"""Seconds that the form may take to arrive."""
RECHECK_S = 5.0
"""Seconds between two checks of the credential behind a stream."""
CHALLENGE = {"www-authenticate": "Bearer"}
FORM = "application/x-www-form-urlencoded"
MESSAGE_PLACE = b"<!-- message -->"


class _NoLongerAllowedError(OSError):
    """The credential behind a stream is not valid any more; the stream ends as if its connection had broken."""


class Guard:
    """Lets requests through whose caller may observe; it is ASGI middleware around the whole console."""

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticates,
        login_page: bytes,
        cookie_name: str,
        *,
        secure: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            login_page: page with the form for signing in, with `MESSAGE_PLACE` where what went wrong is said.
            cookie_name: name of the cookie; browsers send a cookie to every port of a host.
            secure: whether the console is served over TLS, so that browsers must not send the cookie otherwise.
        """
        self._app = app
        self._authenticator = authenticator
        self._login_page = login_page
        self._cookie_name = cookie_name
        self._secure = secure
        self._clock = clock
        self._sessions = Sessions()
        self._limit = LoginLimit()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        if scope["path"] == LOGIN:
            await (await self._login(request))(scope, receive, send)
        elif scope["path"] == LOGOUT:
            await self._logout(request)(scope, receive, send)
        elif (authorization := self._credential(request)) is None:
            await self._stranger(request, 401, "sign in, or send authorization: Bearer KEY")(scope, receive, send)
        else:
            await self._serve(request, authorization, send)

    async def _serve(self, request: Request, authorization: str, send: Send) -> None:
        principal = await self._principal(authorization)
        if principal is None or not principal.may(Right.OBSERVE):
            status = 401 if principal is None else 403
            kind = EventKind.AUTHENTICATION if principal is None else EventKind.PERMISSION
            target = f"{request.method} {request.url.path}"
            note(kind, Outcome.REFUSED, target, who=principal or ANYBODY, peer=peer_of(request.scope))
            said = "the credential is not valid" if principal is None else "the credential may not observe"
            await self._stranger(request, status, said)(request.scope, request.receive, send)
            return
        checked_s = self._clock()

        async def watched(message: Message) -> None:
            nonlocal checked_s
            if message.get("more_body") and self._clock() - checked_s >= RECHECK_S:
                checked_s = self._clock()
                still = await self._principal(authorization)
                if still is None or not still.may(Right.OBSERVE) or self._credential(request) is None:
                    raise _NoLongerAllowedError
            await send(message)

        await self._app(request.scope, request.receive, watched)

    def _credential(self, request: Request) -> str | None:
        """Return the credential of a request, or that of its session; None: it has neither."""
        given = authorization_of(request.scope)
        if given is not None:
            return given
        session = self._sessions.find(self._cookie(request), self._clock())
        return None if session is None else session.authorization

    async def _principal(self, authorization: str) -> Principal | None:
        try:
            return await self._authenticator.authenticate(authorization)
        except CredentialError:
            return None

    def _stranger(self, request: Request, status: int, said: str) -> Response:
        """Return the answer to somebody who may not see this: browsers are led to where they can sign in."""
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(LOGIN, 303, HEADERS)
        return problem(status, said, CHALLENGE if status == 401 else {})

    async def _login(self, request: Request) -> Response:
        if request.method in ("GET", "HEAD"):
            return self._page(200, "")
        if request.method != "POST":
            return problem(405, "GET or POST", {"allow": "GET, POST"})
        if not _of_this_page(request):
            return problem(403, "the form must be sent by the console's own page")
        peer = peer_of(request.scope)
        if (rest := self._rest(peer)) is not None:
            return rest
        key = await _posted_key(request)
        if key is None:
            return self._page(400, "The form did not arrive.")
        if (rest := self._rest(peer)) is not None:
            return rest
        self._limit.tries(peer, self._clock())
        authorization = f"Bearer {key}"
        principal = await self._principal(authorization)
        if principal is None or not principal.may(Right.OBSERVE):
            note(EventKind.LOGIN, Outcome.REFUSED, LOGIN, who=principal or ANYBODY, peer=peer)
            if principal is None:
                return self._page(401, "This key is not valid.")
            return self._page(403, "This key may not observe: one of an operator is needed.")
        self._limit.succeeded(peer)
        note(EventKind.LOGIN, Outcome.DONE, LOGIN, who=principal, peer=peer)
        self._sessions.close(self._cookie(request))
        answer = RedirectResponse("/", 303, HEADERS)
        self._set_cookie(answer, self._sessions.open(authorization, self._clock()), round(SESSION_S))
        return answer

    def _rest(self, peer: str) -> Response | None:
        """Return the answer to a host that has failed too often lately; None if it may try."""
        wait_s = self._limit.wait_s(peer, self._clock())
        if wait_s <= 0:
            return None
        note(EventKind.LOGIN, Outcome.REFUSED, LOGIN, peer=peer, detail="too many failed attempts")
        retry_s = math.ceil(wait_s)
        return self._page(429, f"Too many failed attempts. Try again in {retry_s} s.", {"retry-after": str(retry_s)})

    def _logout(self, request: Request) -> Response:
        if request.method != "POST":
            return problem(405, "POST", {"allow": "POST"})
        if not _of_this_page(request):
            return problem(403, "the form must be sent by the console's own page")
        self._sessions.close(self._cookie(request))
        answer = RedirectResponse(LOGIN, 303, {**HEADERS, "clear-site-data": '"cache"'})
        self._set_cookie(answer, "", 0)
        return answer

    def _page(self, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
        content = self._login_page.replace(MESSAGE_PLACE, html.escape(message).encode())
        more = {**HEADERS, **(CHALLENGE if status == 401 else {}), **(headers or {})}
        return Response(content, status, more, "text/html; charset=utf-8")

    def _cookie(self, request: Request) -> str:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(request.headers.get("cookie", ""))
        except CookieError:
            return ""
        found = cookies.get(self._cookie_name)
        return "" if found is None else found.value

    def _set_cookie(self, answer: Response, value: str, age_s: int) -> None:
        answer.set_cookie(
            self._cookie_name, value, max_age=age_s, path="/", secure=self._secure, httponly=True, samesite="strict"
        )


def _of_this_page(request: Request) -> bool:
    """Return whether a form was sent by a page of this console, as far as the browser says where it was sent from.

    Programs say nothing; a browser that says nothing is kept from sending cookies elsewhere by `SameSite`.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:
        return False


async def _posted_key(request: Request) -> str | None:
    """Return the key in the form for signing in; None if there is none in a form of sensible size and time."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != FORM:
        return None
    content = b""
    try:
        async with asyncio.timeout(FORM_TIMEOUT_S):
            async for part in request.stream():
                content += part
                if len(content) > MAX_FORM_BYTES:
                    return None
    except TimeoutError:
        return None
    try:
        found = parse_qs(content.decode("ascii"), max_num_fields=8).get("key", [])
    except (UnicodeDecodeError, ValueError):
        return None
    return found[0].strip() if len(found) == 1 else None
