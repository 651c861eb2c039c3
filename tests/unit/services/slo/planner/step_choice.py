"""The step that the planner chooses on a worker for given decodes, asked from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.slo.planner import Worker, WorkerProfile
from services.slo.planner.kernels.layout import (
    CELL_COLUMNS,
    CELL_DRAFT_TOKENS,
    SCHEDULE_BASE_S,
    SCHEDULE_CAPACITY_S,
    SCHEDULE_FLOOR_S,
    SCHEDULE_LOAD,
    SCHEDULE_STEP_ROW,
    STEP_CELLS,
)
from services.slo.planner.kernels.step_table import choose_step


@dataclass(frozen=True, slots=True)
class ChosenStep:
    """Seconds of a step, of what it costs before any prefill, and of the prefill work that fits into it."""

    step_s: float
    base_s: float
    capacity_s: float
    draft_tokens: tuple[int, ...]
    """Draft tokens of each tier; 0 where nobody decodes."""


def chosen_step(profile: WorkerProfile, counts: Sequence[int], context_tokens: Sequence[int]) -> ChosenStep | None:
    """Return the step that leaves prefills the largest share of time; None if no step serves these decodes."""
    worker = Worker("", profile, True, True, 0, 0, tuple(counts), tuple(context_tokens))
    tiers = len(profile.tiers.tpot_s)
    found = np.zeros(SCHEDULE_LOAD)
    held = np.array([*counts, *context_tokens], dtype=np.float64)
    if not choose_step(worker.row, profile.step_table, tiers, held, found):
        return None
    drafts = profile.step_table[int(found[SCHEDULE_STEP_ROW]), STEP_CELLS + CELL_DRAFT_TOKENS :: CELL_COLUMNS]
    draft_tokens = tuple(max(0, int(draft)) if count else 0 for draft, count in zip(drafts, counts, strict=True))
    step_s = max(found[SCHEDULE_BASE_S] + found[SCHEDULE_CAPACITY_S], found[SCHEDULE_FLOOR_S])
    return ChosenStep(float(step_s), float(found[SCHEDULE_BASE_S]), float(found[SCHEDULE_CAPACITY_S]), draft_tokens)
