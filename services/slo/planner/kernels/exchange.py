"""Search with rollback: take a placed candidate out, offer its time to others, and undo it if that gained nothing."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_placed
from services.slo.planner.kernels.assignment import detach, try_pair
from services.slo.planner.kernels.compiled import Integers, compiled, entry
from services.slo.planner.kernels.improvement import LEAST_GAIN, restore, total_value
from services.slo.planner.kernels.layout import (
    JOB_VALUE,
    PLACED_DECODER,
    PLACED_PREFILLER,
    SETTING_PROMISED_JOBS,
    SETTING_WORK_LIMIT,
)
from services.slo.planner.kernels.plan_state import PlanState


@entry
def exchange(state: PlanState, ranking: Integers) -> float:
    """Try to replace each placed candidate by ones without a place, and the reverse.

    Args:
        ranking: (C,), all candidates, most value for what they use first.

    Returns:
        Value gained, never negative.
    """
    first = int(state.settings[SETTING_PROMISED_JOBS])
    before = total_value(state)
    saved = np.empty_like(state.placed)
    copy_placed(state.placed, saved)
    for index in range(ranking.size - 1, -1, -1):
        victim = ranking[index]
        if state.spent[0] > state.settings[SETTING_WORK_LIMIT]:
            break
        if state.placed[victim, PLACED_PREFILLER] < 0:
            continue
        prefiller, decoder = state.placed[victim, PLACED_PREFILLER], state.placed[victim, PLACED_DECODER]
        detach(state, victim)
        gained = _fill_with_others(state, ranking, victim, prefiller)
        if gained <= state.jobs[first + victim, JOB_VALUE] + LEAST_GAIN:
            restore(state, saved)
        else:
            try_pair(state, victim, prefiller, decoder)
            copy_placed(state.placed, saved)
    for candidate in ranking:
        if state.spent[0] > state.settings[SETTING_WORK_LIMIT]:
            break
        if state.placed[candidate, PLACED_PREFILLER] < 0:
            for option in range(state.prefillers.shape[1]):
                prefiller = state.prefillers[candidate, option]
                if prefiller >= 0 and _evict_for(state, ranking, candidate, prefiller, saved):
                    copy_placed(state.placed, saved)
                    break
    return total_value(state) - before


@compiled
def _fill_with_others(state: PlanState, ranking: Integers, victim: int, prefiller: int) -> float:
    """Offer a prefiller to candidates without a place other than the victim, and return the value placed."""
    first = int(state.settings[SETTING_PROMISED_JOBS])
    gained = 0.0
    for candidate in ranking:
        if state.placed[candidate, PLACED_PREFILLER] >= 0 or candidate == victim:
            continue
        if state.spent[0] > state.settings[SETTING_WORK_LIMIT]:
            break
        for option in range(state.prefillers.shape[1]):
            if state.prefillers[candidate, option] == prefiller and _try_prefiller(state, candidate, prefiller):
                gained += state.jobs[first + candidate, JOB_VALUE]
                break
    return gained


@compiled
def _try_prefiller(state: PlanState, candidate: int, prefiller: int) -> bool:
    """Place the candidate on the prefiller, with itself or one of its options as decoder; return whether it fits."""
    if try_pair(state, candidate, prefiller, prefiller):
        return True
    for other in range(state.decoders.shape[1]):
        decoder = state.decoders[candidate, other]
        if decoder >= 0 and decoder != prefiller and try_pair(state, candidate, prefiller, decoder):
            return True
    return False


@compiled
def _evict_for(state: PlanState, ranking: Integers, candidate: int, prefiller: int, saved: Integers) -> bool:
    """Take out what the prefiller holds, least value for its use first, until the candidate fits there.

    Together they must be worth less than the candidate. Returns whether it found a place; undone if not.

    Args:
        saved: (C, PLACED_COLUMNS), where everyone runs, to go back to.
    """
    first = int(state.settings[SETTING_PROMISED_JOBS])
    worth = state.jobs[first + candidate, JOB_VALUE]
    lost = 0.0
    removed = np.empty(state.placed.shape[0], dtype=np.int64)
    removals = 0
    for index in range(ranking.size - 1, -1, -1):
        victim = ranking[index]
        if state.placed[victim, PLACED_PREFILLER] != prefiller:
            continue
        value = state.jobs[first + victim, JOB_VALUE]
        if lost + value >= worth - LEAST_GAIN:
            continue
        detach(state, victim)
        lost += value
        removed[removals] = victim
        removals += 1
        if _try_prefiller(state, candidate, prefiller):
            for again in range(removals - 1, -1, -1):
                back = removed[again]
                if state.placed[back, PLACED_PREFILLER] < 0:
                    try_pair(state, back, prefiller, saved[back, PLACED_DECODER])
            return True
        if state.spent[0] > state.settings[SETTING_WORK_LIMIT]:
            break
    restore(state, saved)
    return False
