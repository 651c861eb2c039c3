"""The audit log of this process. Like logging it is one for the whole process, because every part may have to tell."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Sequence
from pathlib import Path

from services.audit.event import Event, EventKind, Outcome
from services.audit.file import AuditFile
from services.audit.stream import AuditStream
from services.identity.principal import ANYBODY, Principal

CLOSE_S = 2.0
"""Seconds that the end of the process waits for lines to be written."""
LOGGER = "slos-serve.audit"

_log = logging.getLogger(LOGGER)


def _to_ordinary_log(lines: Sequence[str]) -> None:
    for line in lines:
        _log.info("audit %s", line)


_stream = AuditStream(_to_ordinary_log, "")


def configure(process: str, path: Path | None, max_bytes: int) -> None:
    """Send the events of this process to a file, or, without one, to the ordinary log.

    Args:
        process: name of this process on every line.
        max_bytes: size at which another file is begun.

    Raises:
        AuditFileError: the file cannot be opened.
    """
    global _stream  # noqa: PLW0603 - one for the process
    write = _to_ordinary_log if path is None else AuditFile(path, max_bytes).write
    _stream.close(CLOSE_S)
    _stream = AuditStream(write, process)


def note(
    kind: EventKind,
    outcome: Outcome,
    target: str,
    *,
    who: Principal = ANYBODY,
    peer: str = "",
    detail: str = "",
    trace_id: str = "",
) -> None:
    """Tell the audit log of something; the fields are those of `Event`. This never waits and never raises."""
    _stream.note(Event(kind, outcome, target, who, peer, detail, trace_id))


def flush(timeout_s: float = CLOSE_S) -> bool:
    """Wait until everything noted so far is written; return False if that takes longer than `timeout_s`."""
    return _stream.flush(timeout_s)


def noted() -> dict[EventKind, int]:
    """Return how many events of each kind this process has noted. Any thread may call it."""
    return {kind: _stream.noted[kind] for kind in EventKind}


def left_out() -> dict[str, int]:
    """Return how many events got no line, by the reason. Any thread may call it."""
    return dict(_stream.left_out)


atexit.register(lambda: _stream.close(CLOSE_S))
