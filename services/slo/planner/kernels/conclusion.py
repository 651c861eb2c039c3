"""What a filled plan says about itself: when prompts end, how workers step, and why the rest found no place."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.compiled import Floats, compiled, entry
from services.slo.planner.kernels.explanation import explain_all
from services.slo.planner.kernels.layout import BASE, FLOOR, GROW, ROOM, ROW, TIER, WORKER_COUNTS
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.schedule import end_of, finish_times
from services.slo.planner.kernels.step_table import choose_step


@entry
def conclude(board: PlanState, releases: Floats, finish: Floats, steps: Floats, reasons: Floats) -> None:
    """Everything that is told about a filled board: see `finish_all`, `plan_steps` and `explain_all`."""
    ends = np.zeros(board.workers.shape[0])
    finish_all(board, finish, ends)
    future = np.empty_like(board.workers)
    count_newcomers(board, future)
    plan_steps(board, future, steps)
    explain_all(board, releases, finish, ends, future, reasons)


@compiled
def finish_all(board: PlanState, finish: Floats, ends: Floats) -> None:
    """When every placed or promised prefill ends, and when each worker has none left."""
    for worker in range(board.workers.shape[0]):
        finish_times(
            board.workers[worker],
            board.tables[worker],
            board.tpots,
            board.jobs,
            board.order[worker],
            board.queued[worker],
            board.state,
            finish,
        )
        ends[worker] = end_of(board.state)


@compiled
def count_newcomers(board: PlanState, future: Floats) -> None:
    """The workers as they will be when their lanes are done: those who stay to decode are counted."""
    for index in range(board.workers.shape[0]):
        worker = future[index]
        copy_floats(board.workers[index], worker)
        for at in range(board.queued[index]):
            job = board.order[index, at]
            tier = int(board.jobs[job, TIER])
            if tier >= 0:
                worker[WORKER_COUNTS + tier] += 1
                worker[WORKER_COUNTS + board.tpots.size + tier] += board.jobs[job, GROW]


@compiled
def plan_steps(board: PlanState, future: Floats, steps: Floats) -> None:
    """Step length in seconds, row of the step table, and share of time left to prefill, for every worker."""
    for index in range(board.workers.shape[0]):
        worker, table = future[index], board.tables[index]
        if not choose_step(worker, table, board.tpots.size, worker[WORKER_COUNTS:], board.scratch):
            steps[index, 0] = np.inf
            steps[index, 1] = 0
            steps[index, 2] = 0.0
            continue
        found = board.scratch
        steps[index, 0] = max(found[BASE] + found[ROOM], found[FLOOR])
        steps[index, 1] = found[ROW]
        steps[index, 2] = found[ROOM] / steps[index, 0]
