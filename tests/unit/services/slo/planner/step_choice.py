"""The step that the planner chooses on a worker for given decodes, asked from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.slo.planner import Worker, WorkerProfile
from services.slo.planner.kernels.layout import BASE, DRAFT, FLOOR, PER_TIER, ROOM, ROW, STATE_COUNTS
from services.slo.planner.kernels.step_table import choose_step
from tests.unit.services.slo.planner.kernel import callable_from_python

_choose_step = callable_from_python(choose_step)


@dataclass(frozen=True, slots=True)
class ChosenStep:
    """Seconds of a step, of what it costs before any prefill, and of the prefill work that fits into it."""

    step_s: float
    base_s: float
    room_s: float
    draft_tokens: tuple[int, ...]
    """Draft tokens of each tier; 0 where nobody decodes."""


def chosen_step(profile: WorkerProfile, counts: Sequence[int], context_tokens: Sequence[int]) -> ChosenStep | None:
    """Return the step that leaves prefills the largest share of time; None if no step serves these decodes."""
    worker = Worker("", profile, True, True, 0, 0, tuple(counts), tuple(context_tokens))
    tiers = len(profile.tiers.tpot_s)
    found = np.zeros(STATE_COUNTS)
    held = np.array([*counts, *context_tokens], dtype=np.float64)
    if not _choose_step(worker.row, profile.step_table, tiers, held, found):
        return None
    row = profile.step_table[int(found[ROW])]
    drafts = tuple(max(0, int(row[1 + PER_TIER * tier + DRAFT])) if counts[tier] else 0 for tier in range(tiers))
    step_s = max(found[BASE] + found[ROOM], found[FLOOR])
    return ChosenStep(float(step_s), float(found[BASE]), float(found[ROOM]), drafts)
