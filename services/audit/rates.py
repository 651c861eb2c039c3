"""How many lines of each kind the audit log takes, so that no caller can fill a disk with them."""

from __future__ import annotations

from collections import Counter

from services.audit.event import EventKind, Outcome

LINES_PER_S = 10.0
"""Lines of one kind and outcome a second, for as long as they come. A chosen figure: at 300 bytes a line one process
writes at most 260 MB of one kind a day, which rotation bounds further."""
BURST_LINES = 200.0
"""Lines of one kind and outcome that may come at once, so that a short attack or a rollout is told in full."""

Sort = tuple[EventKind, Outcome]


class Rates:
    """A bucket of lines for each kind and outcome, and the count of what found its bucket empty."""

    def __init__(self, lines_per_s: float = LINES_PER_S, burst_lines: float = BURST_LINES) -> None:
        self._lines_per_s = lines_per_s
        self._burst_lines = burst_lines
        self._buckets: dict[Sort, tuple[float, float]] = {}
        self._suppressed: Counter[Sort] = Counter()

    @property
    def suppressed(self) -> bool:
        """Whether events have been left out since `told` was called last."""
        return bool(self._suppressed)

    def take(self, sort: Sort, now_s: float) -> bool:
        """Return whether an event at `now_s` gets a line; one that does not is counted."""
        lines, then_s = self._buckets.get(sort, (self._burst_lines, now_s))
        lines = min(self._burst_lines, lines + (now_s - then_s) * self._lines_per_s)
        taken = lines >= 1.0
        self._buckets[sort] = (lines - 1.0 if taken else lines, now_s)
        if not taken:
            self._suppressed[sort] += 1
        return taken

    def told(self) -> dict[Sort, int]:
        """Return how many events of each sort were left out, and count from 0 again."""
        counts = dict(self._suppressed)
        self._suppressed.clear()
        return counts
