"""The standard streams of a command, made usable whatever the shell or the service manager made of them."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Literal, TextIO


def prepare_streams() -> None:
    """Let writing to standard output and standard error never fail for a character or for a stream that is closed.

    A closed stream leads nowhere. What the encoding of a terminal or pipe does not have is written as an escape, as
    Python does on standard error by itself.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one: otherwise the first connection or file would take its place.
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or _nowhere("r")
    sys.stdout = sys.stdout or _nowhere("w")
    sys.stderr = sys.stderr or _nowhere("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nowhere(mode: Literal["r", "w"]) -> TextIO:
    return Path(os.devnull).open(mode, encoding="utf-8")
