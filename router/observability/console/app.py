"""The console's web application: a page, and the JSON that it reads."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from importlib import resources

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.observability.console.documents import encoded
from router.observability.console.feed import Feed
from router.observability.console.guard import Guard
from router.observability.console.headers import HEADERS, JSON, problem
from router.observability.console.view import RouterView
from router.observability.history.windows import KEPT_WINDOWS, WINDOW_S
from services.http.sse import SseResponse
from services.rpc.guard import Authenticates

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
MAX_READERS = 32
SEND_PATIENCE_S = 30.0
"""Seconds after which a reader that takes nothing is disconnected: it has gone, or sleeps and may come again."""
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
LOGOUT_PLACE = b"<!-- logout -->"
LOGOUT_FORM = b'<form method="post" action="/logout"><button class="quiet" type="submit">sign out</button></form>'


def live_feed(view: RouterView, interval_s: float = INTERVAL_S) -> Feed:
    """Return the feed of server-sent events named `state`, one every `interval_s` seconds."""
    return Feed(lambda: b"event: state\ndata: " + encoded(view.live_document()) + b"\n\n", interval_s)


@dataclass(frozen=True, slots=True)
class Access:
    """How the console finds out who asks."""

    authenticator: Authenticates
    cookie_name: str
    """Name of the cookie of a session."""
    secure: bool
    """Whether the console is served over TLS."""


def build_app(view: RouterView, feed: Feed, allowed_hosts: tuple[str, ...], access: Access | None = None) -> Starlette:
    """Return the console as a web application.

    Args:
        access: None: everybody may see everything.
        allowed_hosts: host names under which a browser may ask. On loopback this keeps out other web pages, which can
            make a name of theirs point here.
    """
    files = _static_files()
    page, kind = files["index.html"]
    files["index.html"] = (page.replace(LOGOUT_PLACE, b"" if access is None else LOGOUT_FORM), kind)
    login_page, _ = files.pop("login.html")
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))]
    if access is not None:
        guard = Middleware(
            Guard,
            authenticator=access.authenticator,
            login_page=login_page,
            cookie_name=access.cookie_name,
            secure=access.secure,
        )
        middleware.append(guard)

    async def state(_request: Request) -> Response:
        return Response(encoded(view.state_document()), headers=HEADERS, media_type=JSON)

    async def history(request: Request) -> Response:
        past_s = _seconds(request.query_params.get("past_s", ""))
        if past_s is None:
            return problem(400, "past_s: seconds, a positive number")
        return Response(encoded(view.history_document(past_s)), headers=HEADERS, media_type=JSON)

    async def one_request(request: Request) -> Response:
        request_id = request.path_params["request_id"]
        document = view.request_document(request_id)
        if document is None:
            return problem(404, await view.whereabouts(request_id))
        return Response(encoded(document), headers=HEADERS, media_type=JSON)

    async def events(_request: Request) -> Response:
        if feed.readers >= MAX_READERS:
            return problem(503, f"{MAX_READERS} readers are served already")
        return SseResponse(feed.frames(), HEADERS, SEND_PATIENCE_S)

    async def static(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        found = files.get(name)
        if found is None:
            return problem(404, "no such page")
        content, content_type = found
        return Response(content, headers=HEADERS, media_type=content_type)

    return Starlette(
        routes=[
            Route("/", static),
            Route("/static/{name}", static),
            Route("/api/state", state),
            Route("/api/history", history),
            Route("/api/requests/{request_id:path}", one_request),
            Route("/api/events", events),
        ],
        middleware=middleware,
    )


def _seconds(text: str) -> float | None:
    """Return the seconds that a query asks for: an hour if it asks for nothing, None if it is no positive number."""
    if not text:
        return WINDOW_S * KEPT_WINDOWS
    try:
        past_s = float(text)
    except ValueError:
        return None
    return past_s if math.isfinite(past_s) and past_s > 0 else None


def _static_files() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page by name, each with its content and content type; they are few and small."""
    found = {}
    for file in resources.files("router.observability.console").joinpath("static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in CONTENT_TYPES:
            found[file.name] = (file.read_bytes(), CONTENT_TYPES[suffix])
    return found
