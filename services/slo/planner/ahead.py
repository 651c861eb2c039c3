"""How much of a worker's next step running decodes leave to prompts because they are ahead of their due times."""

from __future__ import annotations

from collections.abc import Iterable

from services.slo.due_times import LONGEST_GAP_TPOTS
from services.slo.planner.worker_profile import StepBound


def ahead_s(bound: StepBound, requests: int, context_tokens: int, leads: Iterable[tuple[float, float]]) -> float:
    """Return the seconds of a worker's next step that promised decodes leave to prompts in need of it.

    Either the decodes sit the step out, or it is twice as long as a TPOT and stands for two: see
    `services.slo.composer`. They leave nothing unless each of them is ahead by as much: one that is not bounds the
    step.

    Args:
        requests, context_tokens: of all promised decodes together, as the planner counts them.
        leads: for each of them, seconds from the beginning of the step until its next token is due, and its TPOT in
            seconds.
    """
    if any(lead_s < LONGEST_GAP_TPOTS * tpot_s for lead_s, tpot_s in leads):
        return 0.0
    return bound.without_s(requests, context_tokens)
