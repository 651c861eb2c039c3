"""The search of a round: place greedily, then look for something better until that gains nothing or costs too much."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.compiled import Integers
from services.slo.planner.kernels.exchange import exchange
from services.slo.planner.kernels.greedy import contested_prefillers, place
from services.slo.planner.kernels.improvement import improve_prefiller
from services.slo.planner.kernels.layout import SETTING_WORK_LIMIT
from services.slo.planner.kernels.plan_state import PlanState

_PASSES: Final = 3
"""Times that the search goes over all workers, if each pass gains something. Chosen."""


def solve(state: PlanState, window: int) -> None:
    """Fill `state.placed` with the best plan that the work limit affords.

    Args:
        window: number of options of each candidate that are tried at a time.
    """
    ranking = np.full(state.placed.shape[0], -1, dtype=np.int64)
    if place(state, window, ranking) == 0:
        return
    for _ in range(_PASSES):
        gained = _improve_prefillers(state, window, ranking)
        if _within_limit(state):
            gained += exchange(state, ranking)
        if gained <= 0 or not _within_limit(state):
            return


def _within_limit(state: PlanState) -> bool:
    """Return whether the search may go on."""
    return bool(state.spent[0] <= state.settings[SETTING_WORK_LIMIT])


def _improve_prefillers(state: PlanState, window: int, ranking: Integers) -> float:
    """Solve contested prefillers one after the other, offer elsewhere what lost its place, and return the value gained.

    Args:
        ranking: (C,), all candidates, most value for what they use first.
    """
    gained = 0.0
    for prefiller in contested_prefillers(state).tolist():
        if not _within_limit(state):
            break
        gain = improve_prefiller(state, prefiller, ranking)
        if gain > 0:
            place(state, window, ranking)
            gained += gain
    return gained
