"""The page for Prometheus: an HTTP server in a thread, which may ask for a token."""

from __future__ import annotations

import hmac
import logging
import socket
import threading
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client
from prometheus_client import CollectorRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

READ_PATIENCE_S = 10.0
"""Seconds that a scraper may take to send its request, so that nobody holds a thread for long."""
MAX_TOKEN_BYTES = 4096
"""Bytes of the file with the token at most; a longer one holds something else."""

_log = logging.getLogger(__name__)


class MetricsPage:
    """Serves the metrics of one process until closed."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, token_file: Path | None) -> None:
        """Listen and begin to serve.

        Args:
            token_file: file with the token that a scraper must send; it is read for each scrape, so that the token can
                be changed without a restart. None: everybody may scrape.

        Raises:
            OSError: nobody can listen there.
        """
        page = _plain_text(prometheus_client.make_wsgi_app(registry))
        guarded = page if token_file is None else _guarded(page, token_file)
        family, address = _address(host, port)

        class Server(ThreadingMixIn, WSGIServer):
            daemon_threads = True
            address_family = family

        self._server = make_server(address, port, guarded, Server, _Handler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop to serve."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = READ_PATIENCE_S

    def log_message(self, *_: object) -> None:
        """Write nothing: a scrape every few seconds is no news."""


def _address(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    family, _, _, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, str(address[0])


def _guarded(page: WSGIApplication, token_file: Path) -> WSGIApplication:
    """Serve a page to whoever sends the token, as `authorization: Bearer TOKEN`, and nothing to anybody else."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        token = _token(token_file)
        scheme, _, sent = given.partition(b" ")
        if token is None or scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(b" "), token):
            start_response("401 Unauthorized", [("www-authenticate", "Bearer"), ("content-type", "text/plain")])
            return [b"metrics need the token in telemetry.metrics_token_file\n"]
        return page(environ, start_response)

    return guarded


def _token(file: Path) -> bytes | None:
    """Return the token in a file; None, with a line in the log, if there is none, so that nobody is let in."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        _log.error("telemetry.metrics_token_file: %s: %s", file, error.strerror or error)
        return None
    words = content.split()
    if len(words) != 1 or len(content) > MAX_TOKEN_BYTES:
        _log.error("telemetry.metrics_token_file: %s holds no token: one word is wanted", file)
        return None
    return words[0]


def _plain_text(page: WSGIApplication) -> WSGIApplication:
    """Serve the text format whatever is asked for.

    Prometheus prefers OpenMetrics, in which the library writes `vllm_` for `vllm:`.
    """

    def plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return page({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)

    return plain
