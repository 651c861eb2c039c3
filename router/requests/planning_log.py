"""The planner's answers about one request, round by round."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.slo.admission import Outcome
from services.slo.latency_forecast import Placement
from services.slo.planner import Binding

KEPT_NOTES = 32
"""Number of notes that are kept about one request; a held one is planned many times a second."""


VERDICTS = frozenset({Outcome.GUARANTEED, Outcome.BEST_EFFORT, Outcome.REFUSED})
"""The outcomes that the client is told."""


@dataclass(slots=True)
class PlanningRound:
    """One planning round, shared by all notes about it. Times are on the router's clock, in seconds."""

    number: int
    at_s: float
    candidates: int
    took_s: float = 0.0
    """Seconds that the round took; set when it has ended."""


@dataclass(frozen=True, slots=True)
class PlanningNote:
    """The answer of one round to one request."""

    round: PlanningRound
    outcome: Outcome
    placement: Placement | None = None
    """Where the request goes, or would go without a guarantee; None if it can go nowhere."""
    binding: Binding = Binding.NONE
    """The resource that forbids a guarantee."""
    earliest_guarantee_s: float | None = None
    """Seconds until the planner expected to be able to guarantee the request; None if it expected no such time."""
    detail: str = ""
    """The error of a request that was refused with one, in words."""


@dataclass(slots=True)
class PlanningLog:
    """The notes about one request: the first ones and the latest, at most `KEPT_NOTES`."""

    notes: list[PlanningNote] = field(default_factory=list)
    total: int = 0
    """Number of rounds that the request took part in."""
    verdict: PlanningNote | None = None
    """The note that the client was told of; None while there is none."""

    def add(self, note: PlanningNote) -> None:
        """Add the answer of another round."""
        self.total += 1
        if note.outcome in VERDICTS:
            self.verdict = note
        if len(self.notes) < KEPT_NOTES:
            self.notes.append(note)
        else:
            self.notes[-1] = note
