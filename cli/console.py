"""Where commands write to."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console

FILE_WIDTH = 150
"""Lines in a file or a pipe need not fit a terminal."""


def make_console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = shutil.get_terminal_size().columns if stream.isatty() else FILE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False)
