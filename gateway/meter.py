"""Measures HTTP requests, from their head to the last byte of the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.telemetry.catalogue import gateway as catalogue
from services.telemetry.labels import OTHER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from services.telemetry.meters import Meters

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ANSWER = 499
"""The client went before there was a status."""


class HttpMeter:
    """ASGI middleware, the outermost one."""

    def __init__(
        self,
        app: ASGIApp,
        meters: Meters,
        routes: frozenset[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            routes: paths that are served; clients make up the others.
        """
        self._app = app
        self._routes = routes
        self._clock = clock
        self._active = 0
        self._duration = meters.histogram(catalogue.HTTP_DURATION)
        meters.observe_one(catalogue.HTTP_ACTIVE, lambda: self._active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = NO_ANSWER

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began_s = self._clock()
        self._active += 1
        try:
            await self._app(scope, receive, watch)
        finally:
            self._active -= 1
            labels = {
                catalogue.METHOD: scope["method"] if scope["method"] in METHODS else OTHER,
                catalogue.ROUTE: scope["path"] if scope["path"] in self._routes else OTHER,
                catalogue.STATUS: str(status),
            }
            self._duration.record(self._clock() - began_s, labels)
