"""Which workers have said nothing for too long, judged by a process that may itself have been held up."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

CHECKS = 10
"""Number of checks in the time after which a worker counts as silent."""


@dataclass(slots=True)
class SilenceWatch(Generic[KeyT]):
    """Times since workers were last heard of, without the time in which nobody could listen.

    A router that was paused, or computed for seconds, has messages to read that came meanwhile. A check that comes late
    by a whole interval says how long that was, and the worker is given that much longer. Times are on one clock.
    """

    silence_s: float
    """Seconds without a word after which a worker is silent."""
    checked_s: float
    """Time of the last check."""
    _heard_s: dict[KeyT, float] = field(default_factory=dict)

    @property
    def interval_s(self) -> float:
        """Seconds from one check to the next."""
        return self.silence_s / CHECKS

    def heard(self, key: KeyT, now_s: float) -> None:
        """Note that a worker said something, or has just been called."""
        self._heard_s[key] = now_s

    def forget(self, key: KeyT) -> None:
        """Stop to wait for a worker."""
        self._heard_s.pop(key, None)

    def check(self, now_s: float) -> list[KeyT]:
        """Return the workers that have been silent for too long."""
        late_s = now_s - self.checked_s - self.interval_s
        self.checked_s = now_s
        if late_s >= self.interval_s:
            for key, heard_s in self._heard_s.items():
                self._heard_s[key] = min(now_s, heard_s + late_s)
        return [key for key, heard_s in self._heard_s.items() if now_s - heard_s >= self.silence_s]
