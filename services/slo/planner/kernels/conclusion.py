"""What a filled plan says about itself: when prompts end, how workers step, and why the rest found no place."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.compiled import Floats, compiled, entry
from services.slo.planner.kernels.explanation import explain_all
from services.slo.planner.kernels.layout import (
    JOB_KV_TOKENS,
    JOB_LOCAL_TIER,
    PLANNED_STEP_ROW,
    PLANNED_STEP_S,
    SCHEDULE_STEP_ROW,
    WORKER_LOAD,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.schedule import end_of, finish_times, full_step_of
from services.slo.planner.kernels.step_table import choose_step


@entry
def conclude(state: PlanState, releases: Floats, finish_s: Floats, planned_steps: Floats, reasons: Floats) -> None:
    """Write down everything that is told about a filled plan.

    Args:
        releases: (W, n, RELEASE_COLUMNS), running requests that will end, by time.
        finish_s: (J,), gets when each prefill ends, in seconds from now.
        planned_steps: (W, PLANNED_COLUMNS), gets how each worker steps.
        reasons: (C, REASON_COLUMNS), gets what is known about each candidate without a place.
    """
    ends_s = np.zeros(state.workers.shape[0])
    _finish_all(state, finish_s, ends_s)
    future = np.empty_like(state.workers)
    _add_staying_decodes(state, future)
    _plan_steps(state, future, planned_steps)
    explain_all(state, releases, finish_s, ends_s, future, reasons)


@compiled
def _finish_all(state: PlanState, finish_s: Floats, ends_s: Floats) -> None:
    """Fill `finish_s` (J,) with when every placed or promised prefill ends, `ends_s` (W,) with each worker's last."""
    for index in range(state.workers.shape[0]):
        finish_times(
            state.workers[index],
            state.step_tables[index],
            state.tpot_s,
            state.jobs,
            state.queue[index],
            state.queued[index],
            state.schedule,
            finish_s,
        )
        ends_s[index] = end_of(state.schedule)


@compiled
def _add_staying_decodes(state: PlanState, future: Floats) -> None:
    """Fill `future` (as `state.workers`) with the workers as they will be when all that stays to decode decodes."""
    for index in range(state.workers.shape[0]):
        worker = future[index]
        copy_floats(state.workers[index], worker)
        for at in range(state.queued[index]):
            job = state.queue[index, at]
            tier = int(state.jobs[job, JOB_LOCAL_TIER])
            if tier >= 0:
                worker[WORKER_LOAD + tier] += 1
                worker[WORKER_LOAD + state.tpot_s.size + tier] += state.jobs[job, JOB_KV_TOKENS]


@compiled
def _plan_steps(state: PlanState, future: Floats, planned_steps: Floats) -> None:
    """Fill `planned_steps` (W, PLANNED_COLUMNS) with how each of the `future` workers steps."""
    for index in range(state.workers.shape[0]):
        worker, table = future[index], state.step_tables[index]
        if choose_step(worker, table, state.tpot_s.size, worker[WORKER_LOAD:], state.chosen_step):
            planned_steps[index, PLANNED_STEP_S] = full_step_of(state.chosen_step)
            planned_steps[index, PLANNED_STEP_ROW] = state.chosen_step[SCHEDULE_STEP_ROW]
        else:
            planned_steps[index, PLANNED_STEP_S] = np.inf
            planned_steps[index, PLANNED_STEP_ROW] = 0
