"""The phases of a request: where its time goes, and in which of them a latency target was missed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.slo.attainment import Attainment

KEPT_CHANGES = 64
"""Number of changes of phase that are remembered of a request; one that is never restarted has six."""


class Phase(enum.Enum):
    """A part of a request's time; undisturbed requests go through them in this order, without `RESTART`."""

    QUEUE = "queue"
    PLAN = "plan"
    PREFILL_WAIT = "prefill_wait"
    PREFILL = "prefill"
    HANDOVER = "handover"
    DECODE = "decode"
    RESTART = "restart"

    # The hash of `Enum` is Python code, and every phase of every request is looked up several times.
    __hash__ = object.__hash__


@dataclass(slots=True)
class PhaseClock:
    """Assigns every moment of a request to exactly one phase, so that the phases add up to its time.

    Times are on the router's clock, in seconds.
    """

    since_s: float
    """When the current phase began."""
    phase: Phase = Phase.PLAN
    changes: list[tuple[Phase, float]] = field(default_factory=list)
    """The phases that have ended, each with its end; only the first `KEPT_CHANGES`."""
    _spent_s: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))

    def enter(self, phase: Phase, now_s: float) -> None:
        """End the current phase now and begin another, or the same again."""
        self._spent_s[self.phase] += now_s - self.since_s
        if len(self.changes) < KEPT_CHANGES:
            self.changes.append((self.phase, now_s))
        self.phase, self.since_s = phase, now_s

    def entered(self, phase: Phase, at_s: float, now_s: float) -> None:
        """Begin a phase at `at_s`, as a worker reports it, or at the nearest time at which it can have begun."""
        self.enter(phase, min(now_s, max(self.since_s, at_s)))

    def spent_s(self, now_s: float) -> Mapping[Phase, float]:
        """Return the seconds spent in each phase until now."""
        return self._spent_s | {self.phase: self._spent_s[self.phase] + now_s - self.since_s}


BEFORE_FIRST_TOKEN = (Phase.QUEUE, Phase.PLAN, Phase.PREFILL_WAIT, Phase.PREFILL, Phase.RESTART)
"""The phases in which time to the first token is spent."""


def broken_by(attainment: Attainment, spent_s: Mapping[Phase, float], idle_prefill_s: float) -> Phase | None:
    """Return the phase that is to blame for a missed target; None if none was missed.

    For a late first token that is the phase that took longest beyond what an idle worker needs, which is
    `idle_prefill_s` for the prefill and nothing for the others. For later tokens it is the restart if there was one,
    the hand-over if it alone took longer than the second token had time, and otherwise decoding. For a late task it is
    the longest phase.
    """
    if attainment.kept:
        return None
    if attainment.ttft_s is None or (
        attainment.target_ttft_s is not None and attainment.ttft_s > attainment.target_ttft_s
    ):
        over_s = {phase: spent_s[phase] for phase in BEFORE_FIRST_TOKEN}
        over_s[Phase.PREFILL] -= idle_prefill_s
        return max(over_s, key=over_s.__getitem__)
    late = next((index for index, stage in enumerate(attainment.stages) if stage.late_tokens), None)
    if late is None:
        return max(spent_s, key=spent_s.__getitem__)
    if spent_s[Phase.RESTART] > 0:
        return Phase.RESTART
    tpot_s = attainment.stages[late].target_tpot_s
    if late == 0 and tpot_s is not None and spent_s[Phase.HANDOVER] > tpot_s:
        return Phase.HANDOVER
    return Phase.DECODE
