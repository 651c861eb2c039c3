"""The way of events from whoever notes them to where they are written, which never waits and is bounded."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from services.audit.event import Event, EventKind, suppressed_line
from services.audit.file import AuditFileError
from services.audit.rates import Rates

MAX_WAITING_LINES = 4096
"""Lines that may wait for a slow disk: about 2 MB, and more than the buckets of all kinds hold together."""
SUMMARY_S = 10.0
"""Seconds after which events that were left out are told as a count."""

_log = logging.getLogger(__name__)


class AuditStream:
    """Takes events from any thread, and has a thread of its own write their lines.

    The thread starts with the first event, because an engine may be forked from the process before that.
    """

    def __init__(
        self,
        write: Callable[[Sequence[str]], None],
        process: str,
        *,
        rates: Rates | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            write: writes lines; it may wait, and may raise AuditFileError.
            process: name of this process on every line.
        """
        self._write = write
        self._process = process
        self._rates = rates or Rates()
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._closed = False
        self._failing = False
        self.noted: Counter[EventKind] = Counter()
        """Events of each kind, those included that got no line."""
        self.left_out: Counter[str] = Counter({"rate": 0, "backlog": 0, "disk": 0})
        """Events that got no line, by the reason: too many of their kind, too many waiting lines, or a failed write."""

    def note(self, event: Event) -> None:
        """Take an event. This never waits for a disk and never raises."""
        with self._changed:
            self.noted[event.kind] += 1
            if not self._rates.take((event.kind, event.outcome), self._clock()):
                self.left_out["rate"] += 1
            elif self._closed or len(self._waiting) >= MAX_WAITING_LINES:
                self.left_out["backlog"] += 1
            else:
                self._waiting.append(event.line(self._process, self._wall_clock()))
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="audit log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all lines so far are written; return False if that takes longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what waits and what was left out, and take nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        summary_due_s = self._clock() + SUMMARY_S
        while True:
            with self._changed:
                self._wait(summary_due_s)
                closed, now_s = self._closed, self._clock()
                lines = list(self._waiting)
                self._waiting.clear()
                if closed or now_s >= summary_due_s:
                    summary_due_s = now_s + SUMMARY_S
                    lines += [
                        suppressed_line(self._process, self._wall_clock(), kind, outcome, count)
                        for (kind, outcome), count in self._rates.told().items()
                    ]
                self._writing = bool(lines)
            if lines:
                self._put(lines)
            with self._changed:
                self._writing = False
                self._changed.notify_all()
            if closed:
                return

    def _wait(self, summary_due_s: float) -> None:
        """Wait for lines, for the end, or until it is time to tell what was left out."""
        while not (self._waiting or self._closed):
            left_s = summary_due_s - self._clock() if self._rates.suppressed else None
            if left_s is not None and left_s <= 0:
                return
            self._changed.wait(left_s)

    def _put(self, lines: Sequence[str]) -> None:
        try:
            self._write(lines)
        except AuditFileError as error:
            self.left_out["disk"] += len(lines)
            if not self._failing:
                _log.error("the audit log cannot be written: %s", error)
            self._failing = True
        else:
            if self._failing:
                _log.warning("the audit log can be written again")
            self._failing = False
