"""Health checks of a gRPC server, of which strangers may make only so many last."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

MAX_WATCHERS = 1000
"""Calls of `Watch` that a server keeps open at the same time (chosen: load balancers need a few). Health needs no
credential, and without a bound anybody could fill the memory with such calls."""
MAX_NAME_CHARACTERS = 256
"""Length of the longest name of a service that can be watched: names are kept while they are watched."""


class BoundedHealth(health.aio.HealthServicer):
    """The standard health service with a bound on its watchers. `Check` answers however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self._watchers = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Tell a service's health whenever it changes, until the caller leaves."""
        if len(request.service) > MAX_NAME_CHARACTERS:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"service: at most {MAX_NAME_CHARACTERS} characters")
        if self._watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {MAX_WATCHERS} watch; call Check")
        self._watchers += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watchers -= 1
