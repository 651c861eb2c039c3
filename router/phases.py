"""Where the time of one request goes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Phase(enum.Enum):
    """In the order in which an undisturbed request goes through them."""

    QUEUE = "queue"
    PLAN = "plan"
    PREFILL_WAIT = "prefill_wait"
    PREFILL = "prefill"
    HANDOVER = "handover"
    DECODE = "decode"
    RESTART = "restart"


@dataclass(slots=True)
class PhaseClock:
    """Every moment of a request belongs to exactly one phase, so that the phases add up to its time."""

    since_s: float
    phase: Phase = Phase.PLAN
    _spent_s: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))

    def enter(self, phase: Phase, now_s: float) -> None:
        """The current phase ends now and `phase` begins."""
        self._spent_s[self.phase] += now_s - self.since_s
        self.phase, self.since_s = phase, now_s

    def entered(self, phase: Phase, at_s: float, now_s: float) -> None:
        """`phase` turns out to have begun at `at_s`, as a worker reports; clamped to where that is possible."""
        self.enter(phase, min(now_s, max(self.since_s, at_s)))

    def spent_s(self, now_s: float) -> Mapping[Phase, float]:
        return self._spent_s | {self.phase: self._spent_s[self.phase] + now_s - self.since_s}
