"""Files whose content is taken whole, of a size that is bounded, and read again when they have changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class RegularFileError(OSError):
    """A path leads to a pipe, a device, a socket or a directory, or to a file that is too large."""


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file, and never wait for somebody to write to a pipe.

    Raises:
        RegularFileError: the path leads to no regular file, or to one of more than `max_bytes`.
        OSError: the file cannot be read.
    """
    # `Path.open` takes no opener.
    with open(path, "rb", opener=_open_at_once) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise RegularFileError(f"more than {max_bytes} bytes")
    return content


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes whenever a file is written or replaced; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_dev


def _open_at_once(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe that nobody writes to would hold the thread here for good.
    number = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise RegularFileError("no regular file")
    return number
