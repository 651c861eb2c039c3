"""Log output of a process: one line per record, with time, level, process and message."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Literal

from services.network.credentials import hide_credentials

HANDLER_NAME = "slos-serve"
REQUEST_ID, TRACE_ID = "request_id", "trace_id"


def about(request_id: str, trace_id: str = "") -> dict[str, str]:
    """Build the `extra=` of a log call about one request; JSON lines have its ids in fields of their own."""
    return {name: value for name, value in ((REQUEST_ID, request_id), (TRACE_ID, trace_id)) if value}


def _timestamp(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


class LineFormatter(logging.Formatter):
    """Formats a record as `2026-01-31T12:00:00.123Z INFO    prefill-worker  message`.

    Line breaks and tracebacks are folded into the line, and credentials in URLs are hidden.
    """

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            message = f"{message}\n{''.join(traceback.format_exception(record.exc_info[1]))}"
        folded = hide_credentials(" | ".join(line.rstrip() for line in message.splitlines() if line.strip()))
        return f"{_timestamp(record)} {record.levelname:<7} {self._process_name}  {folded}"


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on a line.

    Its fields are `time`, `level`, `process`, `logger` and `message`, and if they apply `request_id`, `trace_id`,
    `error` (the type of an exception) and `stack`. Credentials in URLs are hidden.
    """

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "process": self._process_name,
            "logger": record.name,
            "message": hide_credentials(record.getMessage()),
        }
        for name in (REQUEST_ID, TRACE_ID):
            if (value := getattr(record, name, "")) != "":
                line[name] = value
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["error"] = type(record.exc_info[1]).__name__
            line["stack"] = hide_credentials("".join(traceback.format_exception(record.exc_info[1])))
        return json.dumps(line, ensure_ascii=False, default=str)


FORMATTERS: Mapping[str, type[LineFormatter | JsonFormatter]] = {"line": LineFormatter, "json": JsonFormatter}


def configure(level: str, process_name: str, form: Literal["line", "json"] = "line") -> None:
    """Send all logging of this process to standard error. A later call replaces the earlier one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(HANDLER_NAME)
    handler.setFormatter(FORMATTERS[form](process_name))
    root = logging.getLogger()
    for old in [known for known in root.handlers if known.get_name() == HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
