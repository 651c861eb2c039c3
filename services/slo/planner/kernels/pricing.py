"""What scarce resources are worth: for comparing schedules by one number, and for ranking candidates."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.arrays import falling
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import (
    CELL_COLUMNS,
    CELL_CONTEXT_COST_S,
    CELL_COST_S,
    CELL_DRAFT_TOKENS,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_LOCAL_TIER,
    JOB_PROMPT_TOKENS,
    JOB_TIER,
    JOB_VALUE,
    JOB_WORK_S,
    SETTING_PROMISED_JOBS,
    STEP_CELLS,
    STEP_LENGTH_S,
    WORKER_KV_FREE_TOKENS,
    WORKER_STEP_ROWS,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.schedule import begin, spare_share

_USE_KV_TOKENS: Final = 0
_USE_DECODER_KV_TOKENS: Final = 1
_USE_DECODER_SHARE: Final = 2
_USES: Final = 3
"""Columns of `uses`: KV memory of the prefiller; KV memory and share of time of the decode worker elsewhere."""
_LEAST_COST_S: Final = 1e-12
_LEAST_AVAILABLE: Final = 1e-9
"""What stands for nothing where it is divided by."""


@compiled
def share_of(state: PlanState, worker: int, job: int) -> float:
    """Return the share of a worker's time that the job takes once it decodes there, at the longest step that serves it.

    Args:
        worker: an index of `state.workers`.
    """
    tier = int(state.jobs[job, JOB_TIER])
    if tier < 0:
        return 0.0
    cell = STEP_CELLS + CELL_COLUMNS * tier
    table = state.step_tables[worker]
    for row in range(int(state.workers[worker, WORKER_STEP_ROWS]) - 1, -1, -1):
        if table[row, cell + CELL_DRAFT_TOKENS] >= 0:
            context_s = state.jobs[job, JOB_KV_TOKENS] * table[row, cell + CELL_CONTEXT_COST_S]
            return float((table[row, cell + CELL_COST_S] + context_s) / table[row, STEP_LENGTH_S])
    return 0.0


@compiled
def shadow_prices(
    state: PlanState,
    prefiller: int,
    decoder: int,
    tracks_decoder: bool,
    sequence: Integers,
    decode_shares: Floats,
    scarce_s: Floats,
) -> float:
    """Price resources in seconds of the prefiller's time, and return the value that a second of it is worth.

    A resource is scarce if all candidates together ask for more than there is; all of it is then worth all of the
    prefiller's time until the last deadline. Arguments are as of `solve_frontier`; `decode_shares` and `scarce_s` (n,)
    come as zeros and are filled in.
    """
    first = int(state.settings[SETTING_PROMISED_JOBS])
    jobs = state.jobs
    rate = 0.0
    if begin(state.workers[prefiller], state.step_tables[prefiller], state.tpot_s, state.schedule):
        rate = spare_share(state.schedule)
    horizon_s = 0.0
    for job in sequence:
        if jobs[job, JOB_DUE_S] < np.inf:
            horizon_s = max(horizon_s, jobs[job, JOB_DUE_S])
    uses = np.zeros((sequence.size, _USES))
    for at in range(sequence.size):
        job = sequence[at]
        if job >= first:
            stays = jobs[job, JOB_LOCAL_TIER] >= 0
            uses[at, _USE_KV_TOKENS] = jobs[job, JOB_KV_TOKENS] if stays else jobs[job, JOB_PROMPT_TOKENS]
            if tracks_decoder:
                uses[at, _USE_DECODER_KV_TOKENS] = jobs[job, JOB_KV_TOKENS]
                uses[at, _USE_DECODER_SHARE] = share_of(state, decoder, job)
            elif stays:
                decode_shares[at] = share_of(state, prefiller, job)
    left_s = horizon_s * rate
    _price_scarcity(state, prefiller, decoder, left_s, uses, scarce_s)
    density = np.zeros(sequence.size)
    costs_s = np.zeros(sequence.size)
    for at in range(sequence.size):
        job = sequence[at]
        later_s = max(0.0, horizon_s - jobs[job, JOB_DUE_S])
        costs_s[at] = jobs[job, JOB_WORK_S] + decode_shares[at] * later_s + scarce_s[at]
        if job < first:
            left_s -= jobs[job, JOB_WORK_S]
        else:
            density[at] = jobs[job, JOB_VALUE] / max(costs_s[at], _LEAST_COST_S)
    value_per_s = 0.0
    for at in falling(density, sequence.size):
        if left_s <= 0 or density[at] == 0:
            break
        left_s -= costs_s[at]
        value_per_s = density[at]
    return value_per_s


@compiled
def _price_scarcity(
    state: PlanState, prefiller: int, decoder: int, capacity_s: float, uses: Floats, scarce_s: Floats
) -> None:
    """Add to `scarce_s` (n,) what each job's use of scarce resources is worth in seconds.

    Args:
        capacity_s: seconds of prefill work that the prefiller has until the last deadline.
        uses: (n, _USES), what each job of the sequence takes.
    """
    available = np.empty(_USES)
    available[_USE_KV_TOKENS] = state.workers[prefiller, WORKER_KV_FREE_TOKENS]
    available[_USE_DECODER_KV_TOKENS] = state.workers[decoder, WORKER_KV_FREE_TOKENS]
    available[_USE_DECODER_SHARE] = 0.0
    if begin(state.workers[decoder], state.step_tables[decoder], state.tpot_s, state.schedule):
        available[_USE_DECODER_SHARE] = spare_share(state.schedule)
    for resource in range(_USES):
        asked = 0.0
        for at in range(uses.shape[0]):
            asked += uses[at, resource]
        if asked > available[resource]:
            for at in range(uses.shape[0]):
                scarce_s[at] += capacity_s * uses[at, resource] / max(available[resource], _LEAST_AVAILABLE)
