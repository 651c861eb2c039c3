"""A gateway process of its own, as `slos-serve gateway` starts it."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.local import processes
from deploy.local.ports import free_port
from deploy.local.processes import RunningProcess
from tests.support.eventually import wait_until

STOP_GRACE_S = 10.0
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class HttpDoor:
    """A running gateway."""

    port: int
    process: RunningProcess
    metrics_address: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory_bytes(self) -> int:
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=headers, timeout=PATIENCE_S)

    def open_stream(self, body: Mapping[str, Any], *, receive_buffer_bytes: int = 0) -> socket.socket:
        """A streaming completion of which nothing has been read yet."""
        content = json.dumps({"stream": True, **body}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: door\r\ncontent-length: {len(content)}\r\n\r\n"
        connection = socket.socket()
        if receive_buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(head.encode() + content)
        return connection


@contextlib.contextmanager
def http_door(
    directory: Path,
    routers: Sequence[str],
    model: str,
    collector: str = "",
    *,
    name: str = "",
    config: Path | None = None,
) -> Iterator[HttpDoor]:
    """
    Args:
        name: of the model; empty: as its directory is called.
        collector: where it exports its traces and metrics; empty: nowhere.
        config: file of the other options.
    """
    port, metrics_port = free_port(), free_port()
    environment = {
        "SLOS_SERVE_GATEWAY__PORT": str(port),
        "SLOS_SERVE_GATEWAY__ROUTERS": json.dumps(list(routers)),
        "SLOS_SERVE_MODEL__PATH": model,
        "SLOS_SERVE_MODEL__NAME": name,
        "SLOS_SERVE_TELEMETRY__METRICS_PORT": str(metrics_port),
        "SLOS_SERVE_TELEMETRY__OTLP_ENDPOINT": collector,
    }
    command = [sys.executable, "-m", "cli", "gateway", *(("--config", str(config)) if config is not None else ())]
    process = processes.start("gateway", command, directory / "gateway.log", environment, die_with_parent=True)
    door = HttpDoor(port, process, f"127.0.0.1:{metrics_port}")

    def listens() -> bool:
        assert process.process() is not None, process.log_tail()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(door.url + "/ping", timeout=5).status_code > 0
        return False

    try:
        wait_until(listens, "the gateway listens")
        yield door
    finally:
        processes.stop([process], STOP_GRACE_S, lambda line: None)
