"""Counts of requests over time, in windows of fixed length."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from router.requests.phases import Phase
from router.requests.request_record import Ending, RequestRecord

WINDOW_S = 10.0
KEPT_WINDOWS = 360
"""Number of windows that are kept: an hour of them."""


@dataclass(slots=True)
class Tally:
    """Counts of the requests of one profile that ended in a window."""

    ended: Counter[Ending] = field(default_factory=Counter)
    refused_by: Counter[str] = field(default_factory=Counter)
    """Number of refused requests by the resource that bound, or else by the error's name."""
    broken_by: Counter[Phase] = field(default_factory=Counter)
    """Number of missed guarantees by the phase in which the time was lost."""
    served: int = 0
    """Number of requests whose phases are in `phases_s`."""
    phases_s: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))
    """Seconds spent in each phase, summed over requests."""

    def add(self, record: RequestRecord) -> None:
        """Count one request."""
        self.ended[record.ending] += 1
        if record.ending is Ending.MISSED and record.broken_by is not None:
            self.broken_by[record.broken_by] += 1
        if record.phases_s is not None:
            self.served += 1
            for phase, spent_s in record.phases_s.items():
                self.phases_s[phase] += spent_s

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally to this one."""
        self.ended.update(other.ended)
        self.refused_by.update(other.refused_by)
        self.broken_by.update(other.broken_by)
        self.served += other.served
        for phase, spent_s in other.phases_s.items():
            self.phases_s[phase] += spent_s


@dataclass(frozen=True, slots=True)
class ClusterSample:
    """A sample of how full the cluster was at one moment of a window."""

    queued: int
    running: int
    held: int
    kv_blocks_used: int
    kv_blocks_total: int


@dataclass(slots=True)
class Window:
    """The requests that ended between `began_s` and `began_s + WINDOW_S`, on the router's clock, in seconds."""

    began_s: float
    tallies: dict[str, Tally] = field(default_factory=dict)
    """Counts by profile."""
    sample: ClusterSample | None = None

    def of(self, profile: str) -> Tally:
        """Return the counts of a profile, to be added to."""
        tally = self.tallies.get(profile)
        if tally is None:
            tally = self.tallies[profile] = Tally()
        return tally


@dataclass(slots=True)
class Windows:
    """The windows of the last hour. Windows in which nothing happened are left out."""

    _windows: deque[Window] = field(default_factory=lambda: deque(maxlen=KEPT_WINDOWS))

    def at(self, now_s: float) -> Window:
        """Return the window that `now_s` lies in; times must not run backwards."""
        began_s = now_s // WINDOW_S * WINDOW_S
        if not self._windows or self._windows[-1].began_s < began_s:
            self._windows.append(Window(began_s))
        return self._windows[-1]

    def since(self, since_s: float, now_s: float) -> list[Window]:
        """Return the windows that reach beyond `since_s`, oldest first, and none older than an hour."""
        oldest_s = max(since_s - WINDOW_S, now_s - WINDOW_S * KEPT_WINDOWS)
        return [window for window in self._windows if window.began_s > oldest_s]

    def totals(self, since_s: float, now_s: float) -> dict[str, Tally]:
        """Return sums by profile over the windows that reach beyond `since_s`."""
        sums: dict[str, Tally] = {}
        for window in self.since(since_s, now_s):
            for profile, tally in window.tallies.items():
                sums.setdefault(profile, Tally()).merge(tally)
        return sums
