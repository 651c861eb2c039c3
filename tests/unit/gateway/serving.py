"""The gateway's application on a real HTTP server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource

from gateway.app import build_app
from services.config.settings import GatewaySettings
from services.rpc.guard import Authenticates
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces


@asynccontextmanager
async def http_server(*routers: str, authenticator: Authenticates | None = None, **options: Any) -> AsyncIterator[int]:
    """Serve the gateway's application on a free port of this machine, and yield the port.

    Args:
        authenticator: checks credentials; None: they are not checked.
        options: options of the gateway.
    """
    meters, traces = Meters(NoOpMeterProvider()), Traces(Resource.get_empty(), 0.0, None)
    settings = GatewaySettings(**options)
    app = build_app(settings, routers or ("127.0.0.1:1",), None, meters, traces, authenticator=authenticator)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    server.capture_signals = _leave_signals  # type: ignore[method-assign]
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@contextmanager
def _leave_signals() -> Iterator[None]:
    yield
