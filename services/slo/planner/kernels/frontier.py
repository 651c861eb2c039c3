"""Dynamic programme for one lane: the best set of its candidates, over value, time, decode counts and memory.

Stages are the lane's prefills in order of due time, promised ones forced in. A schedule so far is dropped if another
has at least its value and is at least as good in everything else: *more* time left, fewer decodes, less memory. With
all of it compared the result is exact. When there are too many schedules, everything but value is put into one number
of seconds, and the most promising `beam` are kept.
"""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats, falling
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import (
    ASK_TIER,
    BASE,
    CHANGED,
    DUE,
    EXTRA,
    FITS,
    FLOOR,
    GROW,
    KV_FREE,
    KV_FULL,
    KV_HERE,
    KV_PROMPT,
    KV_THERE,
    LOST,
    NODE,
    REACHED,
    ROOM,
    SLOTS,
    SLOTS_HERE,
    SLOTS_THERE,
    SPENT,
    START,
    STATE_COUNTS,
    THERE_COUNTS,
    TIER,
    TIGHTEST,
    USED,
    VALUE,
    WORKER_COUNTS,
)
from services.slo.planner.kernels.schedule import advance, begin, end_of, keeps_up
from services.slo.planner.kernels.step_table import choose_step

_ROUNDING = 1e-9
TRANSITION_WORK = 4.0
"""Units of work of one transition, one unit being one prefill scheduled."""


@compiled
def solve_frontier(
    lane: Floats,
    table: Floats,
    tpots: Floats,
    jobs: Floats,
    sequence: Integers,
    committed: int,
    there: Floats,
    there_table: Floats,
    tracks_there: bool,
    losses: Floats,
    extras: Floats,
    price: float,
    exact: bool,
    beam: int,
    work_limit: float,
    spent: Floats,
    chosen: Integers,
) -> int:
    """Choose among the candidates in `sequence`; promised prefills are the jobs below `committed`.

    Args:
        there: the one decode worker elsewhere that all candidates would go to, if `tracks_there`.
        losses: share of the lane's time that each job of the sequence takes once it decodes here.
        extras: other scarce resources that it uses, in seconds.
        price: value that a second is worth.
        chosen: gets the chosen candidates' jobs, those due last first.

    Returns:
        How many were chosen; -1 if not even the promised prefills can be scheduled.
    """
    tiers = tpots.size
    extra_at = STATE_COUNTS + 2 * tiers
    width = extra_at + THERE_COUNTS + 2 * tiers
    current = np.empty((2 * beam + 2, width))
    following = np.empty((2 * beam + 2, width))
    taken = np.empty((2 * beam + 2, width))
    scratch = np.empty(width)
    parents = np.empty(sequence.size * (2 * beam + 2) + 1, dtype=np.int64)
    added = np.empty(parents.size, dtype=np.int64)
    nodes = 1
    parents[0] = -1
    horizon = 0.0
    for job in sequence:
        if jobs[job, DUE] < np.inf:
            horizon = max(horizon, jobs[job, DUE])
    if not _open(lane, table, tpots, there, current[0], extra_at):
        return -1
    rate = current[0, ROOM] / max(current[0, BASE] + current[0, ROOM], current[0, FLOOR])
    size = int(np.int64(1))
    for at in range(sequence.size):
        job = sequence[at]
        forced = job < committed
        if spent[0] > work_limit:
            beam = min(beam, 4)
            exact = False
        takes = 0
        for index in range(size):
            row = taken[takes]
            copy_floats(current[index], row)
            spent[0] += TRANSITION_WORK
            if advance(lane, table, tpots, jobs, job, row) != FITS:
                continue
            if not forced:
                if not _afford(lane, there, there_table, tracks_there, tiers, jobs, job, row, extra_at, scratch):
                    continue
                row[extra_at + LOST] += losses[at]
                row[extra_at + EXTRA] += extras[at]
                row[extra_at + REACHED] += jobs[job, VALUE]
                parents[nodes] = int(row[extra_at + NODE])
                added[nodes] = job
                row[extra_at + NODE] = nodes
                nodes += 1
            ended = end_of(row)
            later = row[extra_at + LOST] * max(0.0, horizon - ended)
            row[extra_at + SPENT] = ended * rate + later + row[extra_at + EXTRA]
            takes += 1
        skips = size - size if forced else size
        size = _merge(current, skips, taken, takes, following, extra_at, tiers, exact, spent)
        if size > beam:
            size = _prune(following, size, beam, price, extra_at)
        current, following = following, current
    return _best(lane, table, tiers, current, size, extra_at, parents, added, chosen, scratch)


@compiled
def _open(lane: Floats, table: Floats, tpots: Floats, there: Floats, row: Floats, extra_at: int) -> bool:
    """The schedule before the first prefill."""
    for column in range(row.size):
        row[column] = 0.0
    for tier in range(2 * tpots.size):
        row[extra_at + THERE_COUNTS + tier] = there[WORKER_COUNTS + tier]
    return begin(lane, table, tpots, row)


@compiled
def _afford(
    lane: Floats,
    there: Floats,
    there_table: Floats,
    tracks_there: bool,
    tiers: int,
    jobs: Floats,
    job: int,
    row: Floats,
    extra_at: int,
    scratch: Floats,
) -> bool:
    """Book memory and decode rate for one more candidate, if there is enough."""
    tier = int(jobs[job, ASK_TIER])
    stays = jobs[job, TIER] >= 0 or (tier < 0 and not tracks_there)
    row[extra_at + KV_HERE] += jobs[job, KV_FULL] if stays else jobs[job, KV_PROMPT]
    if row[extra_at + KV_HERE] > lane[KV_FREE]:
        return False
    if stays:
        row[extra_at + SLOTS_HERE] += 1 if tier >= 0 else 0
        return bool(row[extra_at + SLOTS_HERE] <= lane[SLOTS])
    if not tracks_there:
        return True
    row[extra_at + KV_THERE] += jobs[job, KV_FULL]
    if row[extra_at + KV_THERE] > there[KV_FREE]:
        return False
    if tier < 0:
        return True
    row[extra_at + SLOTS_THERE] += 1
    if row[extra_at + SLOTS_THERE] > there[SLOTS]:
        return False
    held = row[extra_at + THERE_COUNTS :]
    held[tier] += 1
    held[tiers + tier] += jobs[job, GROW]
    return choose_step(there, there_table, tiers, held, scratch)


@compiled
def _merge(
    skipped: Floats,
    skips: int,
    taken: Floats,
    takes: int,
    into: Floats,
    extra_at: int,
    tiers: int,
    exact: bool,
    spent: Floats,
) -> int:
    """Both lists, each by falling value, into one without dominated schedules."""
    size, skip, take = 0, 0, 0
    least = np.inf
    while skip < skips or take < takes:
        if take == takes:
            from_skipped = True
        elif skip == skips:
            from_skipped = False
        else:
            ahead = skipped[skip, extra_at + REACHED] - taken[take, extra_at + REACHED]
            cheaper = skipped[skip, extra_at + SPENT] <= taken[take, extra_at + SPENT]
            from_skipped = ahead > 0 or (ahead == 0 and cheaper)
        row = skipped[skip] if from_skipped else taken[take]
        if from_skipped:
            skip += 1
        else:
            take += 1
        if exact:
            dominated = False
            for other in range(size):
                if _dominates(into[other], row, extra_at, tiers):
                    dominated = True
                    break
            spent[0] += size / 4
        else:
            dominated = row[extra_at + SPENT] >= least - _ROUNDING
            least = min(least, row[extra_at + SPENT])
        if not dominated and size < into.shape[0]:
            copy_floats(row, into[size])
            size += 1
    return size


@compiled
def _dominates(left: Floats, right: Floats, extra_at: int, tiers: int) -> bool:
    """Whether any continuation of `right` is possible from `left` too, given that its value is no less."""
    for at in range(STATE_COUNTS, STATE_COUNTS + 2 * tiers):
        if left[at] > right[at]:
            return False
    for at in range(extra_at + KV_HERE, extra_at + LOST):
        if left[at] > right[at]:
            return False
    for at in range(extra_at + THERE_COUNTS, extra_at + THERE_COUNTS + 2 * tiers):
        if left[at] > right[at]:
            return False
    left_end, right_end = end_of(left), end_of(right)
    if left_end > right_end + _ROUNDING:
        return False
    left_room = min(left[ROOM], left[TIGHTEST] - left[START] - left[BASE]) - left[USED]
    right_room = min(right[ROOM], right[TIGHTEST] - right[START] - right[BASE]) - right[USED]
    if left[USED] == 0:
        left_room = 0.0
    if right[USED] == 0:
        right_room = 0.0
    roomy = left_room >= right_room - _ROUNDING and left[CHANGED] <= right[CHANGED]
    return bool(roomy or left_end + left[BASE] <= right_end)


@compiled
def _prune(rows: Floats, size: int, beam: int, price: float, extra_at: int) -> int:
    """Keep the `beam` schedules whose value, less the time they used, is highest."""
    scores = np.empty(size)
    for index in range(size):
        scores[index] = rows[index, extra_at + REACHED] - price * rows[index, extra_at + SPENT]
    threshold = scores[falling(scores, size)[beam - 1]]
    kept = 0
    for index in range(size):
        if scores[index] >= threshold and kept < beam:
            if kept < index:
                copy_floats(rows[index], rows[kept])
            kept += 1
    return kept


@compiled
def _best(
    lane: Floats,
    table: Floats,
    tiers: int,
    rows: Floats,
    size: int,
    extra_at: int,
    parents: Integers,
    added: Integers,
    chosen: Integers,
    scratch: Floats,
) -> int:
    """Write down the most valuable schedule whose decodes can be kept up for good."""
    for index in range(size):
        if not keeps_up(lane, table, tiers, rows[index], scratch):
            continue
        depth = 0
        node = int(rows[index, extra_at + NODE])
        while node > 0:
            chosen[depth] = added[node]
            depth += 1
            node = parents[node]
        return depth
    return -1
