"""The lead of a worker's decodes, as far as prompts can have it."""

from __future__ import annotations

from collections.abc import Iterable

from services.slo.due_times import LONGEST_GAP_TPOTS
from services.slo.planner.worker_profile import StepBound


def ahead_s(bound: StepBound, requests: int, context_tokens: int, leads: Iterable[tuple[float, float]]) -> float:
    """Of a worker's next step, what promised decodes leave to prompts that are in need of it.

    Either they sit it out, or it is twice as long as a TPOT and stands for two: see `services.slo.composer`. Nothing,
    unless each of them is ahead by as much: one that is not bounds the step.

    Args:
        requests, context_tokens: of all promised decodes, as the planner counts them.
        leads: of each, the time from the beginning of the step until its next token is due, and its TPOT.
    """
    if any(lead_s < LONGEST_GAP_TPOTS * tpot_s for lead_s, tpot_s in leads):
        return 0.0
    return bound.without_s(requests, context_tokens)
