"""What the planner said about one request, round by round."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from services.slo.latency_forecast import Placement
from services.slo.planner import Binding

KEPT_NOTES = 32
"""Of one request; a held one is planned many times a second."""


class Outcome(enum.Enum):
    """What a round meant for a request."""

    GUARANTEED = "guaranteed"
    HELD = "held"
    """No room now, but some in sight: planned again."""
    BEST_EFFORT = "best effort"
    REFUSED = "refused"
    MOVED = "moved"
    """Placed again, because its worker was gone or room was found for what had waited long."""


VERDICTS = frozenset({Outcome.GUARANTEED, Outcome.BEST_EFFORT, Outcome.REFUSED})


@dataclass(slots=True)
class PlanningRound:
    """One round, shared by all notes about it. On the router's clock, in seconds."""

    number: int
    at_s: float
    candidates: int
    took_s: float = 0.0
    """Set when it has ended."""


@dataclass(frozen=True, slots=True)
class PlanningNote:
    """What a round answered to one request."""

    round: PlanningRound
    outcome: Outcome
    placement: Placement | None = None
    """Where it goes, or would go without a promise; None if it can go nowhere."""
    binding: Binding = Binding.NONE
    """What forbids a guarantee."""
    earliest_guarantee_s: float | None = None
    """In how many seconds the planner expected to guarantee it."""
    detail: str = ""
    """An error in words."""


@dataclass(slots=True)
class PlanningLog:
    """The notes about one request: the first ones and the latest, `KEPT_NOTES` at most."""

    notes: list[PlanningNote] = field(default_factory=list)
    total: int = 0
    verdict: PlanningNote | None = None
    """The note that the client was told of; None while there is none."""

    def add(self, note: PlanningNote) -> None:
        self.total += 1
        if note.outcome in VERDICTS:
            self.verdict = note
        if len(self.notes) < KEPT_NOTES:
            self.notes.append(note)
        else:
            self.notes[-1] = note
