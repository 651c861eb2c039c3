"""The HTTP server of the console, on the router's event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import uvicorn

from router.observability.console.app import Access, build_app, live_feed
from router.observability.console.view import RouterView
from router.observability.history.windows import WINDOW_S
from services.config.settings import ConsoleSettings
from services.network.address import AddressInUseError, BindError, advertised_address, listening_socket
from services.rpc.guard import Authenticates

log = logging.getLogger(__name__)

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
BACKLOG = 64
SHUTDOWN_S = 1


class ConsoleServer:
    """Serves the console. While nobody looks it costs the router one sample in ten seconds."""

    def __init__(
        self,
        options: ConsoleSettings,
        view: RouterView,
        authenticator: Authenticates | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """
        Args:
            authenticator: finds out who asks; None: everybody may see everything.
            certificate: PEM files of the certificate chain and the key that browsers are shown; None: unencrypted.
        """
        self._options = options
        self._authenticator = authenticator
        self._certificate = certificate
        self._view = view
        self._feed = live_feed(view)
        self._server: uvicorn.Server | None = None
        self._sampling: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen. The router serves requests with or without a console, so a failure to listen is only logged.

        Returns:
            The console's URL; empty if it could not listen.
        """
        try:
            listening = _listen(self._options.host, self._options.port)
        except BindError as error:
            log.error("no console: %s", error)
            return ""
        name, port = listening.getsockname()[:2]
        loopback = name in ("127.0.0.1", "::1")
        access = None
        secure = self._certificate is not None
        if self._authenticator is not None:
            # Browsers send a cookie to all ports of a host, and another console may have one of them.
            access = Access(self._authenticator, f"{'__Host-' if secure else ''}slos-console-{port}", secure)
        certificate, key = self._certificate or (None, None)
        config = uvicorn.Config(
            build_app(self._view, self._feed, LOOPBACK_NAMES if loopback else ("*",), access),
            ssl_certfile=certificate,
            ssl_keyfile=key,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        try:
            config.load()
        except OSError as error:
            log.error("no console: %s and %s are no certificate and key: %s", certificate, key, error)
            listening.close()
            return ""
        self._server = uvicorn.Server(config)
        # `Server.serve` would wake ten times a second, and take the router's signals.
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[listening])
        self._sampling = asyncio.create_task(self._sample(), name="console samples")
        url = f"{'https' if secure else 'http'}://{advertised_address(self._options.host, port)}/"
        log.info("console on %s", url)
        return url

    async def stop(self) -> None:
        """End all streams and stop listening."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)
        await self._feed.close()
        if self._server is not None:
            await self._server.shutdown()

    async def _sample(self) -> None:
        while True:
            self._view.sample()
            await asyncio.sleep(WINDOW_S)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port, or on a free one if the port is taken.

    Raises:
        BindError: there is no such address here.
    """
    try:
        listening = listening_socket(host, port, BACKLOG)
    except AddressInUseError:
        log.info("port %d is taken: the console takes a free one", port)
        listening = listening_socket(host, 0, BACKLOG)
    listening.setblocking(False)
    return listening
