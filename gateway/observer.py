"""Metrics, traces and ids of HTTP requests, from their first line to the last byte of the answer."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.rpc.errors import REQUEST_ID
from services.telemetry.catalogue import gateway as catalogue
from services.telemetry.labels import OTHER
from services.telemetry.logs import about
from services.telemetry.traces import TRACEPARENT, TRACESTATE, Part, Trace, Traces

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from services.telemetry.meters import Meters

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ANSWER = 499
"""Status that is recorded for a request whose client left before there was one."""
FIRST_ERROR_OF_OURS = 500
REQUEST_ID_HEADER, TRACE_ID_HEADER = b"x-request-id", b"x-trace-id"

log = logging.getLogger(__name__)


class Observer:
    """Records every HTTP request; it is the outermost ASGI middleware.

    Every answer names its request by the client's `x-request-id`, or by one made here. A request that is posted becomes
    a part of a trace, the client's or a new one, and the application finds this process in `traceparent`.
    """

    def __init__(
        self,
        app: ASGIApp,
        meters: Meters,
        traces: Traces,
        routes: frozenset[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record the requests to `app`.

        Args:
            routes: paths that are served; metrics name all others alike, for clients make them up.
        """
        self._app = app
        self._traces = traces
        self._routes = routes
        self._clock = clock
        self._active = 0
        self._duration = meters.histogram(catalogue.HTTP_DURATION)
        meters.observe_one(catalogue.HTTP_ACTIVE, lambda: self._active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _LOOKED_AT}
        trace = self._traces.begin(given.get(b"traceparent", ""), given.get(b"tracestate", ""), from_client=True)
        request_id = given.get(REQUEST_ID_HEADER, "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = f"http-{secrets.token_hex(16)}"
        status = NO_ANSWER

        async def watch(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                answered = next((value for name, value in headers if name.lower() == REQUEST_ID_HEADER), None)
                if answered is None:
                    headers.append((REQUEST_ID_HEADER, request_id.encode()))
                else:
                    request_id = answered.decode("latin-1")
                message = {**message, "headers": [*headers, (TRACE_ID_HEADER, trace.trace_id.encode())]}
            await send(message)

        began_s = self._clock()
        self._active += 1
        try:
            await self._app({**scope, "headers": _carrying(scope["headers"], trace)}, receive, watch)
        finally:
            self._active -= 1
            self._ended(scope, status, request_id, trace, began_s)

    def _ended(self, scope: Scope, status: int, request_id: str, trace: Trace, began_s: float) -> None:
        now_s = self._clock()
        labels = {
            catalogue.METHOD: scope["method"] if scope["method"] in METHODS else OTHER,
            catalogue.ROUTE: scope["path"] if scope["path"] in self._routes else OTHER,
            catalogue.STATUS: str(status),
        }
        self._duration.record(now_s - began_s, labels)
        took = f"{labels[catalogue.METHOD]} {labels[catalogue.ROUTE]}"
        log.debug("%s: %d in %.3f s", took, status, now_s - began_s, extra=about(request_id, trace.trace_id))
        if scope["method"] == "POST" and self._traces.wants(trace):
            error = f"status {status}" if status >= FIRST_ERROR_OF_OURS else ""
            attributes = {**labels, catalogue.STATUS: status, "gen_ai.request.id": request_id}
            self._traces.end(trace, Part(took, began_s, now_s, attributes), error=error)


_LOOKED_AT = frozenset({REQUEST_ID_HEADER, TRACEPARENT.encode(), TRACESTATE.encode()})
_Headers = list[tuple[bytes, bytes]]


def _carrying(headers: _Headers, trace: Trace) -> _Headers:
    """Return the headers of a request with this process in place of its client in the trace."""
    others = [(name, value) for name, value in headers if name not in (b"traceparent", b"tracestate")]
    context = [(b"traceparent", trace.traceparent.encode()), (b"tracestate", trace.tracestate.encode())]
    return [*others, *((name, value) for name, value in context if value)]
