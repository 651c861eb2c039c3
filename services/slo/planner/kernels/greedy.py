"""The first plan of a round: promised prefills keep their place, then candidates follow, best first."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats, falling
from services.slo.planner.kernels.compiled import Integers, compiled, entry
from services.slo.planner.kernels.layout import (
    FITS,
    JOB_KV_TOKENS,
    JOB_LIMIT_S,
    JOB_PROMPT_TOKENS,
    JOB_TIER,
    JOB_VALUE,
    LACKS_DECODE_RATE,
    PLACED_PREFILLER,
    SETTING_PROMISED_JOBS,
    WORKER_KV_FREE_TOKENS,
    WORKER_PER_TOKEN_S,
)
from services.slo.planner.kernels.placement import place_all
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.pricing import share_of
from services.slo.planner.kernels.schedule import advance, begin

_USE_PREFILL_S: Final = 0
_USE_KV_TOKENS: Final = 1
_USE_DECODE_SHARE: Final = 2
_USES: Final = 3
"""Columns of `uses`: what a candidate takes of each resource."""
_LEAST_COST: Final = 1e-12
"""Cost of a candidate that uses nothing, to divide by."""


@compiled
def protect(state: PlanState) -> None:
    """Lift the limit of every promised prefill that cannot be kept: it keeps its place but forbids nothing."""
    saved = np.empty_like(state.schedule)
    for index in range(state.workers.shape[0]):
        worker, table = state.workers[index], state.step_tables[index]
        lost = not begin(worker, table, state.tpot_s, state.schedule)
        for at in range(state.queued[index]):
            job = state.queue[index, at]
            outcome = LACKS_DECODE_RATE
            for _ in range(2):
                if lost:
                    state.jobs[job, JOB_LIMIT_S] = np.inf
                    break
                copy_floats(state.schedule, saved)
                outcome = advance(worker, table, state.tpot_s, state.jobs, job, state.schedule)
                if outcome == FITS:
                    break
                copy_floats(saved, state.schedule)
                state.jobs[job, JOB_LIMIT_S] = np.inf
            lost = lost or outcome != FITS


@compiled
def rank(state: PlanState, ranking: Integers) -> None:
    """Fill `ranking` (C,) with the candidates by value for what they use, most first.

    What all candidates together ask for more of costs more.
    """
    first = int(state.settings[SETTING_PROMISED_JOBS])
    size = state.placed.shape[0]
    uses = np.zeros((size, _USES))
    available = np.zeros(_USES)
    latest_s = 0.0
    for candidate in range(size):
        job = first + candidate
        prefiller = state.prefillers[candidate, 0]
        uses[candidate, _USE_PREFILL_S] = state.jobs[job, JOB_PROMPT_TOKENS] - state.cached[candidate, 0]
        if prefiller >= 0:
            uses[candidate, _USE_PREFILL_S] *= state.workers[prefiller, WORKER_PER_TOKEN_S]
        uses[candidate, _USE_KV_TOKENS] = state.jobs[job, JOB_KV_TOKENS]
        decoder = state.decoders[candidate, 0] if state.decoders.shape[1] > 0 else prefiller
        tier = int(state.jobs[job, JOB_TIER])
        if tier >= 0 and decoder >= 0:
            uses[candidate, _USE_DECODE_SHARE] = share_of(state, decoder, job)
        if state.jobs[job, JOB_LIMIT_S] < np.inf:
            latest_s = max(latest_s, state.jobs[job, JOB_LIMIT_S])
    for index in range(state.workers.shape[0]):
        available[_USE_PREFILL_S] += latest_s
        available[_USE_KV_TOKENS] += max(0.0, state.workers[index, WORKER_KV_FREE_TOKENS])
        available[_USE_DECODE_SHARE] += 1.0
    cost = np.full(size, _LEAST_COST)
    for resource in range(_USES):
        asked = 0.0
        for candidate in range(size):
            asked += uses[candidate, resource]
        if asked > 0 and available[resource] > 0:
            for candidate in range(size):
                cost[candidate] += uses[candidate, resource] * asked / available[resource] ** 2
    density = np.empty(size)
    for candidate in range(size):
        density[candidate] = state.jobs[first + candidate, JOB_VALUE] / cost[candidate]
    order = falling(density, size)
    for at in range(size):
        ranking[at] = order[at]


@entry
def place(state: PlanState, window: int, ranking: Integers) -> int:
    """Place what can be placed without search, in the order of `ranking`.

    Args:
        window: number of options of each candidate that are tried at first; the others follow, as many at a time.
        ranking: (C,), all candidates; filled in, and promised prefills protected, if it begins with -1.

    Returns:
        Number of candidates without a place.
    """
    if ranking[0] < 0:
        protect(state)
        rank(state, ranking)
    missing = 0
    for candidate in range(state.placed.shape[0]):
        missing += 1 if state.placed[candidate, PLACED_PREFILLER] < 0 else 0
    for start in range(0, max(state.prefillers.shape[1], state.decoders.shape[1]), window):
        if missing > 0:
            missing -= place_all(state, ranking, start, window)
    return missing


@entry
def contested_prefillers(state: PlanState) -> Integers:
    """Return the prefillers (n,) that have candidates and are wanted by more, the most wanted first."""
    wanted = np.zeros(state.workers.shape[0])
    held = np.zeros(state.workers.shape[0])
    for candidate in range(state.placed.shape[0]):
        if state.placed[candidate, PLACED_PREFILLER] >= 0:
            held[state.placed[candidate, PLACED_PREFILLER]] += 1
        else:
            for option in range(state.prefillers.shape[1]):
                if state.prefillers[candidate, option] >= 0:
                    wanted[state.prefillers[candidate, option]] += 1
    size = 0
    order = falling(wanted, wanted.size)
    for prefiller in order:
        if wanted[prefiller] > 0 and held[prefiller] > 0:
            order[size] = prefiller
            size += 1
    return order[:size]
