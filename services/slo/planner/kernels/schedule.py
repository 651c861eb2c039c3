"""A lane's schedule: its prefills in order of due time, poured into steps that keep every decode's rate.

This is the planner's one test of feasibility. A step takes prefill work up to its room; it is cut short where a prompt
that it completes would otherwise be late; a prompt that stays to decode takes its share of every later step.
"""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import (
    BASE,
    BUSY,
    CHANGED,
    DECODE_RATE,
    DUE,
    FITS,
    FLOOR,
    GROW,
    JOINED_TPOT,
    LIMIT,
    PREFILL_TIME,
    READY,
    ROOM,
    ROW,
    START,
    STATE_COUNTS,
    TIER,
    TIGHTEST,
    USED,
    WORK,
    WORKER_COUNTS,
)
from services.slo.planner.kernels.step_table import catch_up, choose_near, choose_step

_ROUNDING_S = 1e-9


@compiled
def begin(worker: Floats, table: Floats, tpots: Floats, state: Floats) -> bool:
    """Set `state` to the worker's next step boundary. False if its decodes alone are more than it can keep up with."""
    tiers = tpots.size
    state[START] = worker[BUSY]
    state[USED] = 0.0
    state[TIGHTEST] = np.inf
    state[CHANGED] = 0.0
    state[JOINED_TPOT] = np.inf
    tightest = np.inf
    for tier in range(tiers):
        state[STATE_COUNTS + tier] = worker[WORKER_COUNTS + tier]
        state[STATE_COUNTS + tiers + tier] = worker[WORKER_COUNTS + tiers + tier]
        if worker[WORKER_COUNTS + tier] > 0 and tightest == np.inf:
            tightest = tpots[tier]
    held = state[STATE_COUNTS:]
    if not choose_step(worker, table, tiers, held, state):
        return False
    if tightest < np.inf:
        row = int(state[ROW])
        length = max(state[BASE] + state[ROOM], state[FLOOR])
        state[START] += catch_up(worker, table, tiers, held, row, length)
        state[START] += _short_step(length, state[BASE], tightest)
    return True


@compiled
def _short_step(step_s: float, base: float, tpot_s: float) -> float:
    """Time lost to the one short step that gets a newcomer ahead.

    With drafts a step may be longer than TPOT, since it yields several tokens; but the first of them would be late. One
    step no longer than TPOT makes the newcomer as many tokens ahead as the long steps need.
    """
    return base * (1 - tpot_s / step_s) if step_s > tpot_s else 0.0


@compiled
def _settle(worker: Floats, table: Floats, tpots: Floats, state: Floats) -> bool:
    """Between steps: those who joined count from now on."""
    tiers = tpots.size
    before = int(state[ROW])
    held = state[STATE_COUNTS:]
    if not choose_near(worker, table, tiers, held, before, state):
        return False
    row = int(state[ROW])
    length = max(state[BASE] + state[ROOM], state[FLOOR])
    if row != before:
        state[START] += catch_up(worker, table, tiers, held, row, length)
        state[START] += _short_step(length, state[BASE], table[before, 0])
    state[START] += _short_step(length, state[BASE], state[JOINED_TPOT])
    state[CHANGED] = 0.0
    state[JOINED_TPOT] = np.inf
    return True


@compiled
def advance(worker: Floats, table: Floats, tpots: Floats, jobs: Floats, job: int, state: Floats) -> int:
    """Append one prefill to the schedule in `state`.

    Returns:
        FITS, PREFILL_TIME if it would end after its limit, or DECODE_RATE if decodes leave no time for it. In the
        latter two cases `state` is spoilt.
    """
    work = jobs[job, WORK]
    opened = state[USED] > 0
    left = min(state[ROOM], state[TIGHTEST] - state[START] - state[BASE]) - state[USED]
    if jobs[job, READY] > state[START] and opened:
        left = 0.0
    if not opened or work > left:
        if opened:
            if left > 0:
                work -= left
                state[USED] += left
            state[START] += max(state[BASE] + state[USED], state[FLOOR])
            state[TIGHTEST] = np.inf
        if state[CHANGED] > 0 and not _settle(worker, table, tpots, state):
            return DECODE_RATE
        if jobs[job, READY] > 0:
            state[START] = max(state[START], jobs[job, READY])
        room = state[ROOM]
        if room <= 0:
            return DECODE_RATE
        full = np.ceil(work / room) - 1
        opened = opened or full > 0
        state[START] += full * max(state[BASE] + room, state[FLOOR])
        state[USED] = work - full * room
    else:
        state[USED] += work
    limit = jobs[job, LIMIT]
    # The engine's steps may begin elsewhere than these; then a last few tokens may need a step of their own.
    alone_s = max(0.0, state[FLOOR] - state[BASE]) if opened else 0.0
    if state[START] + max(state[BASE] + state[USED], state[FLOOR]) + alone_s > limit + _ROUNDING_S:
        return PREFILL_TIME
    state[TIGHTEST] = min(state[TIGHTEST], limit)
    if jobs[job, TIER] >= 0:
        tier = int(jobs[job, TIER])
        state[STATE_COUNTS + tier] += 1
        state[STATE_COUNTS + tpots.size + tier] += jobs[job, GROW]
        state[CHANGED] = 1.0
        state[JOINED_TPOT] = min(state[JOINED_TPOT], tpots[tier])
    return FITS


@compiled
def end_of(state: Floats) -> float:
    """When the open step ends, seconds from now."""
    return float(state[START] + (max(state[BASE] + state[USED], state[FLOOR]) if state[USED] > 0 else 0.0))


@compiled
def keeps_up(worker: Floats, table: Floats, tiers: int, state: Floats, scratch: Floats) -> bool:
    """Whether everyone who joined can be served for good."""
    if state[CHANGED] == 0:
        return True
    return choose_step(worker, table, tiers, state[STATE_COUNTS:], scratch)


@compiled
def run_schedule(
    worker: Floats,
    table: Floats,
    tpots: Floats,
    jobs: Floats,
    order: Integers,
    count: int,
    state: Floats,
    scratch: Floats,
) -> int:
    """Schedule `order[:count]` from the worker's next step boundary. FITS, PREFILL_TIME or DECODE_RATE."""
    if not begin(worker, table, tpots, state):
        return DECODE_RATE
    for at in range(count):
        outcome = advance(worker, table, tpots, jobs, order[at], state)
        if outcome != FITS:
            return outcome
    return FITS if keeps_up(worker, table, tpots.size, state, scratch) else DECODE_RATE


@compiled
def finish_times(
    worker: Floats,
    table: Floats,
    tpots: Floats,
    jobs: Floats,
    order: Integers,
    count: int,
    state: Floats,
    finish: Floats,
) -> None:
    """When each prefill of a feasible order ends: with the step that completes it. Written to `finish[job]`."""
    begin(worker, table, tpots, state)
    first = 0
    for at in range(count):
        started = state[START]
        filled = min(state[TIGHTEST], started + max(state[BASE] + state[ROOM], state[FLOOR]))
        advance(worker, table, tpots, jobs, order[at], state)
        if state[START] > started:
            for done in range(first, at):
                finish[order[done]] = max(filled, finish[order[done]])
            first = at
        alone_s = max(0.0, state[FLOOR] - state[BASE])
        for completed in range(first, at + 1):
            finish[order[completed]] = min(end_of(state) + alone_s, jobs[order[completed], LIMIT])


@compiled
def place_in_order(jobs: Floats, order: Integers, count: int, due: float) -> int:
    """Where a prefill with this due time goes: after those due at the same time."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if jobs[order[middle], DUE] <= due:
            low = middle + 1
        else:
            high = middle
    return low
