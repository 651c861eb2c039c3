"""The console's web application: a page, and the JSON that it reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from importlib import resources

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.observability.console.documents import encoded
from router.observability.console.feed import Feed
from router.observability.console.view import RouterView
from router.observability.history.windows import KEPT_WINDOWS, WINDOW_S
from services.http.sse import SseResponse

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
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
JSON = "application/json"


def live_feed(view: RouterView, interval_s: float = INTERVAL_S) -> Feed:
    """Return the feed of server-sent events named `state`, one every `interval_s` seconds."""
    return Feed(lambda: b"event: state\ndata: " + encoded(view.live_document()) + b"\n\n", interval_s)


def build_app(view: RouterView, feed: Feed, allowed_hosts: tuple[str, ...]) -> Starlette:
    """Return the console as a web application.

    Args:
        allowed_hosts: host names under which a browser may ask. On loopback this keeps out other web pages, which can
            make a name of theirs point here.
    """
    files = _static_files()

    async def state(_request: Request) -> Response:
        return Response(encoded(view.state_document()), headers=HEADERS, media_type=JSON)

    async def history(request: Request) -> Response:
        past_s = _seconds(request.query_params.get("past_s", ""))
        if past_s is None:
            return _problem(400, "past_s: seconds, a positive number")
        return Response(encoded(view.history_document(past_s)), headers=HEADERS, media_type=JSON)

    async def one_request(request: Request) -> Response:
        request_id = request.path_params["request_id"]
        document = view.request_document(request_id)
        if document is None:
            return _problem(404, await view.whereabouts(request_id))
        return Response(encoded(document), headers=HEADERS, media_type=JSON)

    async def events(_request: Request) -> Response:
        if feed.readers >= MAX_READERS:
            return _problem(503, f"{MAX_READERS} readers are served already")
        return SseResponse(feed.frames(), HEADERS, SEND_PATIENCE_S)

    async def static(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        found = files.get(name)
        if found is None:
            return _problem(404, "no such page")
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
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))],
    )


def _problem(status: int, what: str) -> Response:
    return Response(encoded({"error": what}), status, HEADERS, JSON)


def _seconds(text: str) -> float | None:
    """Return the seconds that a query asks for: an hour if it asks for nothing, None if it is no positive number."""
    if not text:
        return WINDOW_S * KEPT_WINDOWS
    try:
        past_s = float(text)
    except ValueError:
        return None
    return past_s if math.isfinite(past_s) and past_s > 0 else None


def _static_files() -> Mapping[str, tuple[bytes, str]]:
    """Return the files of the page by name, each with its content and content type; they are few and small."""
    found = {}
    for file in resources.files("router.observability.console").joinpath("static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in CONTENT_TYPES:
            found[file.name] = (file.read_bytes(), CONTENT_TYPES[suffix])
    return found
