"""What scarce resources are worth: for comparing schedules by one number, and for ranking candidates."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import falling
from services.slo.planner.kernels.assignment import spare_share
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import (
    ASK_TIER,
    CONTEXT_COST,
    COST,
    DRAFT,
    DUE,
    GROW,
    KV_FREE,
    KV_FULL,
    KV_PROMPT,
    PER_TIER,
    ROWS,
    TIER,
    VALUE,
    WORK,
)
from services.slo.planner.kernels.plan_state import COMMITTED, PlanState
from services.slo.planner.kernels.schedule import begin

_RESOURCES = 3
"""KV memory of the lane, KV memory and time of the decode worker elsewhere."""


@compiled
def share_of(board: PlanState, worker: int, job: int) -> float:
    """Share of the worker's time that the job takes once it decodes there, at the longest step that serves it."""
    tier = int(board.jobs[job, ASK_TIER])
    if tier < 0:
        return 0.0
    cell = 1 + PER_TIER * tier
    table = board.tables[worker]
    for row in range(int(board.workers[worker, ROWS]) - 1, -1, -1):
        if table[row, cell + DRAFT] >= 0:
            cost = table[row, cell + COST] + board.jobs[job, GROW] * table[row, cell + CONTEXT_COST]
            return float(cost / table[row, 0])
    return 0.0


@compiled
def price_lane(
    board: PlanState, lane: int, there: int, tracks_there: bool, sequence: Integers, losses: Floats, extras: Floats
) -> float:
    """Price resources in seconds of the lane's time, and that time in value; arguments as of `solve_frontier`.

    A resource is scarce if all candidates together ask for more than there is; all of it is then worth all of the
    lane's time until the last deadline.
    """
    first = int(board.settings[COMMITTED])
    jobs = board.jobs
    rate = 0.0
    if begin(board.workers[lane], board.tables[lane], board.tpots, board.state):
        rate = spare_share(board.state)
    horizon = 0.0
    for job in sequence:
        if jobs[job, DUE] < np.inf:
            horizon = max(horizon, jobs[job, DUE])
    uses = np.zeros((sequence.size, _RESOURCES))
    for at in range(sequence.size):
        job = sequence[at]
        if job >= first:
            uses[at, 0] = jobs[job, KV_FULL] if jobs[job, TIER] >= 0 else jobs[job, KV_PROMPT]
            if tracks_there:
                uses[at, 1] = jobs[job, KV_FULL]
                uses[at, 2] = share_of(board, there, job)
            elif jobs[job, TIER] >= 0:
                losses[at] = share_of(board, lane, job)
    _price_scarcity(board, lane, there, horizon * rate, uses, extras)
    capacity = horizon * rate
    density = np.zeros(sequence.size)
    costs = np.zeros(sequence.size)
    for at in range(sequence.size):
        job = sequence[at]
        costs[at] = jobs[job, WORK] + losses[at] * max(0.0, horizon - jobs[job, DUE]) + extras[at]
        if job < first:
            capacity -= jobs[job, WORK]
        else:
            density[at] = jobs[job, VALUE] / max(costs[at], 1e-12)
    price = 0.0
    for at in falling(density, sequence.size):
        if capacity <= 0 or density[at] == 0:
            break
        capacity -= costs[at]
        price = density[at]
    return price


@compiled
def _price_scarcity(board: PlanState, lane: int, there: int, capacity: float, uses: Floats, extras: Floats) -> None:
    available = np.empty(_RESOURCES)
    available[0] = board.workers[lane, KV_FREE]
    available[1] = board.workers[there, KV_FREE]
    available[2] = 0.0
    if begin(board.workers[there], board.tables[there], board.tpots, board.state):
        available[2] = spare_share(board.state)
    for resource in range(_RESOURCES):
        asked = 0.0
        for at in range(uses.shape[0]):
            asked += uses[at, resource]
        if asked > available[resource]:
            for at in range(uses.shape[0]):
                extras[at] += capacity * uses[at, resource] / max(available[resource], 1e-9)
