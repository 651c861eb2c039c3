"""Room held for what is likely to come: where workers are crowded, many cheap requests go before an expensive one.

A promise cannot be taken back, so an expensive prompt that is promised as soon as it fits keeps out the cheaper ones
that come after it. Whatever uses more than a typical newcomer for its value is therefore promised only where such
newcomers would still find room beside it.
"""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import falling
from services.slo.planner.kernels.assignment import detach, prefill_fits, work_of
from services.slo.planner.kernels.compiled import compiled, entry
from services.slo.planner.kernels.layout import ASK_TIER, DECODES, FITS, KV_PROMPT, PER_TOKEN, TIER, VALUE, WORK
from services.slo.planner.kernels.plan_state import COMMITTED, NEWCOMERS, PlanState


@entry
def reserve_headroom(board: PlanState, cost_threshold: float) -> int:
    """Let go of candidates that leave no room for newcomers, the most expensive first. Returns how many were.

    The newcomer is the last row of the board's jobs.

    Args:
        cost_threshold: whoever takes less work for its value need not leave any, and no more does a newcomer's equal.
    """
    first = int(board.settings[COMMITTED])
    size = board.placed.shape[0]
    newcomer = board.jobs.shape[0] - 1
    free_of_it = max(cost_threshold, board.jobs[newcomer, KV_PROMPT] / max(board.jobs[newcomer, VALUE], 1e-9))
    costs = np.zeros(size)
    for candidate in range(size):
        lane = board.placed[candidate, 0]
        if lane >= 0:
            job = first + candidate
            tokens = board.jobs[job, WORK] / board.workers[lane, PER_TOKEN]
            costs[candidate] = tokens / max(board.jobs[job, VALUE], 1e-9)
    let_go = 0
    for candidate in falling(costs, size):
        if costs[candidate] <= free_of_it:
            break
        if not _leaves_room(board, int(newcomer), int(board.placed[candidate, 0])):
            detach(board, candidate)
            let_go += 1
    return let_go


@compiled
def _leaves_room(board: PlanState, newcomer: int, lane: int) -> bool:
    worker = board.workers[lane]
    work = work_of(worker, board.jobs[newcomer, KV_PROMPT], 0.0)
    board.jobs[newcomer, WORK] = board.settings[NEWCOMERS] * work
    board.jobs[newcomer, TIER] = board.jobs[newcomer, ASK_TIER] if worker[DECODES] > 0 else -1.0
    return bool(prefill_fits(board, newcomer, lane) == FITS)
