"""The audit log: who was refused, cancelled something, drained something, or changed what others may do.

It is a stream of its own beside the ordinary logs, one JSON object a line, for people who must find out afterwards
what happened. Nothing in it holds a prompt, an output, a key or another secret. Noting an event never waits: a thread
writes.
"""

from __future__ import annotations

from services.audit.event import HOST, Event, EventKind, Outcome
from services.audit.file import AuditFileError
from services.audit.process import configure, flush, left_out, note, noted

__all__ = [
    "HOST",
    "AuditFileError",
    "Event",
    "EventKind",
    "Outcome",
    "configure",
    "flush",
    "left_out",
    "note",
    "noted",
]
