"""Log lines: one per record, with time, level, process and message."""

from __future__ import annotations

import logging
import sys
import time
import traceback

HANDLER_NAME = "slos-serve"


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO    prefill-worker  message`, line breaks and tracebacks folded into the line."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            message = f"{message}\n{''.join(traceback.format_exception(record.exc_info[1]))}"
        folded = " | ".join(line.rstrip() for line in message.splitlines() if line.strip())
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname:<7} {self._process_name}  {folded}"


def configure(level: str, process_name: str) -> None:
    """Send all logging of this process to standard error. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(HANDLER_NAME)
    handler.setFormatter(LineFormatter(process_name))
    root = logging.getLogger()
    for old in [known for known in root.handlers if known.get_name() == HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
