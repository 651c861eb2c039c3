"""The schedule of a prefill worker: its prefills by due time, poured into steps that keep every decode's rate.

This is the planner's one test of feasibility. A step takes prefill work up to its capacity; it is cut short where a
prompt that it completes would otherwise be late; a prompt that stays to decode takes its share of every later step.

Arrays: `worker` is a row of `PlanState.workers`, `table` its step table, `tpot_s` (tiers,) the TPOT of each tier in
seconds, `jobs` (J, JOB_COLUMNS) all prefills, `queue` (Q,) the worker's jobs by due time, and `schedule`
(SCHEDULE_LOAD + 2 * tiers,) the schedule so far.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import (
    FITS,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_LIMIT_S,
    JOB_LOCAL_TIER,
    JOB_READY_S,
    JOB_WORK_S,
    LACKS_DECODE_RATE,
    LACKS_PREFILL_TIME,
    SCHEDULE_BASE_S,
    SCHEDULE_CAPACITY_S,
    SCHEDULE_FLOOR_S,
    SCHEDULE_JOINED,
    SCHEDULE_JOINED_TPOT_S,
    SCHEDULE_LOAD,
    SCHEDULE_START_S,
    SCHEDULE_STEP_ROW,
    SCHEDULE_TIGHTEST_S,
    SCHEDULE_USED_S,
    STEP_LENGTH_S,
    WORKER_BUSY_S,
    WORKER_LOAD,
)
from services.slo.planner.kernels.step_table import catch_up, choose_near, choose_step

_ROUNDING_S: Final = 1e-9
"""Seconds by which a prefill may miss its limit: rounding."""


@compiled
def begin(worker: Floats, table: Floats, tpot_s: Floats, schedule: Floats) -> bool:
    """Set `schedule` to the worker's next step boundary; False if it cannot even keep up with its decodes."""
    tiers = tpot_s.size
    schedule[SCHEDULE_START_S] = worker[WORKER_BUSY_S]
    schedule[SCHEDULE_USED_S] = 0.0
    schedule[SCHEDULE_TIGHTEST_S] = np.inf
    schedule[SCHEDULE_JOINED] = 0.0
    schedule[SCHEDULE_JOINED_TPOT_S] = np.inf
    tightest_s = np.inf
    for tier in range(tiers):
        schedule[SCHEDULE_LOAD + tier] = worker[WORKER_LOAD + tier]
        schedule[SCHEDULE_LOAD + tiers + tier] = worker[WORKER_LOAD + tiers + tier]
        if worker[WORKER_LOAD + tier] > 0 and tightest_s == np.inf:
            tightest_s = tpot_s[tier]
    load = schedule[SCHEDULE_LOAD:]
    if not choose_step(worker, table, tiers, load, schedule):
        return False
    if tightest_s < np.inf:
        step_s = full_step_of(schedule)
        schedule[SCHEDULE_START_S] += catch_up(worker, table, tiers, load, int(schedule[SCHEDULE_STEP_ROW]), step_s)
        schedule[SCHEDULE_START_S] += _short_step(step_s, schedule[SCHEDULE_BASE_S], tightest_s)
    return True


@compiled
def full_step_of(schedule: Floats) -> float:
    """Return how long a step lasts that is full of prefill work, in seconds."""
    return float(max(schedule[SCHEDULE_BASE_S] + schedule[SCHEDULE_CAPACITY_S], schedule[SCHEDULE_FLOOR_S]))


@compiled
def open_step_of(schedule: Floats) -> float:
    """Return how long the open step lasts with the prefill work that it holds so far, in seconds."""
    return float(max(schedule[SCHEDULE_BASE_S] + schedule[SCHEDULE_USED_S], schedule[SCHEDULE_FLOOR_S]))


@compiled
def spare_share(schedule: Floats) -> float:
    """Return the share of time that full steps leave to prefill."""
    return float(schedule[SCHEDULE_CAPACITY_S] / full_step_of(schedule))


@compiled
def _short_step(step_s: float, base_s: float, tpot_s: float) -> float:
    """Return seconds lost to the one short step that a decode needs when it joins steps longer than its TPOT.

    With drafts a step may be longer than TPOT, since it yields several tokens; but the first of them would be late. One
    step no longer than TPOT makes the decode as many tokens ahead as the long steps need.
    """
    return base_s * (1 - tpot_s / step_s) if step_s > tpot_s else 0.0


@compiled
def _let_join(worker: Floats, table: Floats, tpot_s: Floats, schedule: Floats) -> bool:
    """Count, between two steps, the decodes that joined; False if the worker cannot keep up with them."""
    tiers = tpot_s.size
    before = int(schedule[SCHEDULE_STEP_ROW])
    load = schedule[SCHEDULE_LOAD:]
    if not choose_near(worker, table, tiers, load, before, schedule):
        return False
    row = int(schedule[SCHEDULE_STEP_ROW])
    step_s, base_s = full_step_of(schedule), schedule[SCHEDULE_BASE_S]
    if row != before:
        schedule[SCHEDULE_START_S] += catch_up(worker, table, tiers, load, row, step_s)
        schedule[SCHEDULE_START_S] += _short_step(step_s, base_s, table[before, STEP_LENGTH_S])
    schedule[SCHEDULE_START_S] += _short_step(step_s, base_s, schedule[SCHEDULE_JOINED_TPOT_S])
    schedule[SCHEDULE_JOINED] = 0.0
    schedule[SCHEDULE_JOINED_TPOT_S] = np.inf
    return True


@compiled
def advance(worker: Floats, table: Floats, tpot_s: Floats, jobs: Floats, job: int, schedule: Floats) -> int:
    """Append one prefill to the schedule.

    Returns:
        FITS, LACKS_PREFILL_TIME if it would end after its limit, or LACKS_DECODE_RATE if decodes leave no time for it.
        In the latter two cases `schedule` is spoilt.
    """
    work_s = jobs[job, JOB_WORK_S]
    opened = schedule[SCHEDULE_USED_S] > 0
    ends_s = schedule[SCHEDULE_TIGHTEST_S] - schedule[SCHEDULE_START_S] - schedule[SCHEDULE_BASE_S]
    left_s = min(schedule[SCHEDULE_CAPACITY_S], ends_s) - schedule[SCHEDULE_USED_S]
    if jobs[job, JOB_READY_S] > schedule[SCHEDULE_START_S] and opened:
        left_s = 0.0
    if not opened or work_s > left_s:
        if opened:
            if left_s > 0:
                work_s -= left_s
                schedule[SCHEDULE_USED_S] += left_s
            schedule[SCHEDULE_START_S] += open_step_of(schedule)
            schedule[SCHEDULE_TIGHTEST_S] = np.inf
        if schedule[SCHEDULE_JOINED] > 0 and not _let_join(worker, table, tpot_s, schedule):
            return LACKS_DECODE_RATE
        if jobs[job, JOB_READY_S] > 0:
            schedule[SCHEDULE_START_S] = max(schedule[SCHEDULE_START_S], jobs[job, JOB_READY_S])
        capacity_s = schedule[SCHEDULE_CAPACITY_S]
        if capacity_s <= 0:
            return LACKS_DECODE_RATE
        full_steps = np.ceil(work_s / capacity_s) - 1
        opened = opened or full_steps > 0
        schedule[SCHEDULE_START_S] += full_steps * full_step_of(schedule)
        schedule[SCHEDULE_USED_S] = work_s - full_steps * capacity_s
    else:
        schedule[SCHEDULE_USED_S] += work_s
    limit_s = jobs[job, JOB_LIMIT_S]
    # The engine's steps may begin elsewhere than these; then a last few tokens may need a step of their own.
    alone_s = own_step_of(schedule) if opened else 0.0
    if schedule[SCHEDULE_START_S] + open_step_of(schedule) + alone_s > limit_s + _ROUNDING_S:
        return LACKS_PREFILL_TIME
    schedule[SCHEDULE_TIGHTEST_S] = min(schedule[SCHEDULE_TIGHTEST_S], limit_s)
    if jobs[job, JOB_LOCAL_TIER] >= 0:
        tier = int(jobs[job, JOB_LOCAL_TIER])
        schedule[SCHEDULE_LOAD + tier] += 1
        schedule[SCHEDULE_LOAD + tpot_s.size + tier] += jobs[job, JOB_KV_TOKENS]
        schedule[SCHEDULE_JOINED] = 1.0
        schedule[SCHEDULE_JOINED_TPOT_S] = min(schedule[SCHEDULE_JOINED_TPOT_S], tpot_s[tier])
    return FITS


@compiled
def own_step_of(schedule: Floats) -> float:
    """Return seconds that the last few tokens of a prefill cost more in a step of their own than in a longer one."""
    return float(max(0.0, schedule[SCHEDULE_FLOOR_S] - schedule[SCHEDULE_BASE_S]))


@compiled
def end_of(schedule: Floats) -> float:
    """Return when the open step ends, in seconds from now."""
    if schedule[SCHEDULE_USED_S] > 0:
        return float(schedule[SCHEDULE_START_S] + open_step_of(schedule))
    return float(schedule[SCHEDULE_START_S])


@compiled
def keeps_up(worker: Floats, table: Floats, tiers: int, schedule: Floats, chosen_step: Floats) -> bool:
    """Return whether everyone who joined can be served for good; `chosen_step` is scratch, shaped as `schedule`."""
    if schedule[SCHEDULE_JOINED] == 0:
        return True
    return choose_step(worker, table, tiers, schedule[SCHEDULE_LOAD:], chosen_step)


@compiled
def run_schedule(
    worker: Floats,
    table: Floats,
    tpot_s: Floats,
    jobs: Floats,
    queue: Integers,
    queued: int,
    schedule: Floats,
    chosen_step: Floats,
) -> int:
    """Schedule the first `queued` jobs of the queue from the worker's next step boundary on.

    Args:
        schedule, chosen_step: scratch.

    Returns:
        FITS, LACKS_PREFILL_TIME or LACKS_DECODE_RATE.
    """
    if not begin(worker, table, tpot_s, schedule):
        return LACKS_DECODE_RATE
    for at in range(queued):
        outcome = advance(worker, table, tpot_s, jobs, queue[at], schedule)
        if outcome != FITS:
            return outcome
    return FITS if keeps_up(worker, table, tpot_s.size, schedule, chosen_step) else LACKS_DECODE_RATE


@compiled
def finish_times(
    worker: Floats,
    table: Floats,
    tpot_s: Floats,
    jobs: Floats,
    queue: Integers,
    queued: int,
    schedule: Floats,
    finish_s: Floats,
) -> None:
    """Write to `finish_s` (J,) when each job of a feasible queue ends: with the step that completes it.

    `schedule` gets the schedule with all of them.
    """
    begin(worker, table, tpot_s, schedule)
    first = 0
    for at in range(queued):
        started_s = schedule[SCHEDULE_START_S]
        filled_s = min(schedule[SCHEDULE_TIGHTEST_S], started_s + full_step_of(schedule))
        advance(worker, table, tpot_s, jobs, queue[at], schedule)
        if schedule[SCHEDULE_START_S] > started_s:
            for done in range(first, at):
                finish_s[queue[done]] = max(filled_s, finish_s[queue[done]])
            first = at
        for completed in range(first, at + 1):
            job = queue[completed]
            finish_s[job] = min(end_of(schedule) + own_step_of(schedule), jobs[job, JOB_LIMIT_S])


@compiled
def queue_position(jobs: Floats, queue: Integers, queued: int, due_s: float) -> int:
    """Return the place in the queue of a prefill with this due time: after those due at the same time."""
    low, high = 0, queued
    while low < high:
        middle = (low + high) // 2
        if jobs[queue[middle], JOB_DUE_S] <= due_s:
            low = middle + 1
        else:
            high = middle
    return low
