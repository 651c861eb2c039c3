"""How each worker steps once everything placed there decodes."""

from __future__ import annotations

import numpy as np

from services.slo.planner.compiled import Floats, compiled
from services.slo.planner.layout import BASE, FLOOR, ROOM, ROW, WORKER_COUNTS
from services.slo.planner.plan_state import PlanState
from services.slo.planner.step_table import choose_step


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
