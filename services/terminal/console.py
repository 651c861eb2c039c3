"""The consoles that commands and benchmarks write to."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console

FILE_WIDTH = 150
"""Columns of a line in a file or a pipe, which need not fit a terminal."""


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output or standard error, as wide as the terminal or, elsewhere, `FILE_WIDTH`."""
    stream = sys.stderr if stderr else sys.stdout
    width = shutil.get_terminal_size().columns if stream is not None and stream.isatty() else FILE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False)
