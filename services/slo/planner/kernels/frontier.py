"""Dynamic programme for one prefiller: the best set of its candidates, over value, time, decode counts and memory.

Stages are the prefills in order of due time, promised ones forced in. A schedule so far is dropped if another has at
least its value and is at least as good in everything else: *more* time left, fewer decodes, less memory. With all of it
compared the result is exact. When there are too many schedules, everything but value is put into one number of seconds,
and the most promising `beam` are kept.

Arrays: a frontier (2 * beam + 2, width) has one schedule a row, SCHEDULE_LOAD + 2 * tiers columns of a schedule and
then, from `extra_at` on, the FRONTIER columns; rows are by falling value. `worker` and `decoder` are rows of
`PlanState.workers`, `table` and `decoder_table` their step tables, `tpot_s` (tiers,) TPOTs in seconds, `jobs`
(J, JOB_COLUMNS) all prefills.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats, falling
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import (
    FITS,
    FRONTIER_DECODE_SHARE,
    FRONTIER_DECODER_KV_TOKENS,
    FRONTIER_DECODER_LOAD,
    FRONTIER_DECODER_SLOTS,
    FRONTIER_KV_TOKENS,
    FRONTIER_NODE,
    FRONTIER_SCARCE_S,
    FRONTIER_SLOTS,
    FRONTIER_SPENT_S,
    FRONTIER_VALUE,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_LOCAL_TIER,
    JOB_PROMPT_TOKENS,
    JOB_TIER,
    JOB_VALUE,
    SCHEDULE_BASE_S,
    SCHEDULE_CAPACITY_S,
    SCHEDULE_JOINED,
    SCHEDULE_LOAD,
    SCHEDULE_START_S,
    SCHEDULE_TIGHTEST_S,
    SCHEDULE_USED_S,
    WORKER_FREE_SLOTS,
    WORKER_KV_FREE_TOKENS,
    WORKER_LOAD,
)
from services.slo.planner.kernels.schedule import advance, begin, end_of, keeps_up, spare_share
from services.slo.planner.kernels.step_table import choose_step

TRANSITION_WORK: Final = 4.0
"""Work that one transition counts as, in prefills scheduled. Chosen: it copies a row and books more than time."""
_COMPARE_WORK: Final = 1 / 4
"""Work that comparing two schedules in full counts as, in prefills scheduled. Chosen."""
_BEAM_BEYOND_LIMIT: Final = 4
"""Schedules that are kept once the work limit is reached, to come to an end. Chosen."""
_ROUNDING_S: Final = 1e-9
"""Seconds by which one schedule may be worse than another that it dominates: rounding."""


@compiled
def solve_frontier(
    worker: Floats,
    table: Floats,
    tpot_s: Floats,
    jobs: Floats,
    sequence: Integers,
    promised: int,
    decoder: Floats,
    decoder_table: Floats,
    tracks_decoder: bool,
    decode_shares: Floats,
    scarce_s: Floats,
    value_per_s: float,
    exact: bool,
    beam: int,
    work_limit: float,
    spent: Floats,
    chosen: Integers,
) -> int:
    """Choose among the candidates in `sequence` (n,), jobs by due time; those below `promised` are promised prefills.

    Args:
        decoder: the one decode worker elsewhere that all candidates would go to, if `tracks_decoder`.
        decode_shares: (n,), share of the worker's time that each job of the sequence takes once it decodes here.
        scarce_s: (n,), what the other scarce resources that it uses are worth, in seconds.
        value_per_s: value that a second is worth.
        exact: compare schedules in full.
        beam: most schedules to keep.
        work_limit, spent: bound on the search, and (1,) the work so far, in prefills scheduled.
        chosen: (n,), gets the chosen candidates' jobs, those due last first.

    Returns:
        Number of candidates chosen; -1 if not even the promised prefills can be scheduled.
    """
    tiers = tpot_s.size
    extra_at = SCHEDULE_LOAD + 2 * tiers
    width = extra_at + FRONTIER_DECODER_LOAD + 2 * tiers
    current = np.empty((2 * beam + 2, width))
    following = np.empty((2 * beam + 2, width))
    taken = np.empty((2 * beam + 2, width))
    chosen_step = np.empty(width)
    parents = np.empty(sequence.size * (2 * beam + 2) + 1, dtype=np.int64)
    added = np.empty(parents.size, dtype=np.int64)
    nodes = 1
    parents[0] = -1
    horizon_s = 0.0
    for job in sequence:
        if jobs[job, JOB_DUE_S] < np.inf:
            horizon_s = max(horizon_s, jobs[job, JOB_DUE_S])
    if not _open(worker, table, tpot_s, decoder, current[0], extra_at):
        return -1
    rate = spare_share(current[0])
    size = 1
    for at in range(sequence.size):
        job = sequence[at]
        forced = job < promised
        if spent[0] > work_limit:
            beam = min(beam, _BEAM_BEYOND_LIMIT)
            exact = False
        takes = 0
        for index in range(size):
            row = taken[takes]
            copy_floats(current[index], row)
            spent[0] += TRANSITION_WORK
            if advance(worker, table, tpot_s, jobs, job, row) != FITS:
                continue
            if not forced:
                if not _afford(
                    worker, decoder, decoder_table, tracks_decoder, tiers, jobs, job, row, extra_at, chosen_step
                ):
                    continue
                row[extra_at + FRONTIER_DECODE_SHARE] += decode_shares[at]
                row[extra_at + FRONTIER_SCARCE_S] += scarce_s[at]
                row[extra_at + FRONTIER_VALUE] += jobs[job, JOB_VALUE]
                parents[nodes] = int(row[extra_at + FRONTIER_NODE])
                added[nodes] = job
                row[extra_at + FRONTIER_NODE] = nodes
                nodes += 1
            end_s = end_of(row)
            later_s = row[extra_at + FRONTIER_DECODE_SHARE] * max(0.0, horizon_s - end_s)
            row[extra_at + FRONTIER_SPENT_S] = end_s * rate + later_s + row[extra_at + FRONTIER_SCARCE_S]
            takes += 1
        skips = 0 if forced else size
        size = _merge(current, skips, taken, takes, following, extra_at, tiers, exact, spent)
        if size > beam:
            size = _prune(following, size, beam, value_per_s, extra_at)
        current, following = following, current
    return _best(worker, table, tiers, current, size, extra_at, parents, added, chosen, chosen_step)


@compiled
def _open(worker: Floats, table: Floats, tpot_s: Floats, decoder: Floats, row: Floats, extra_at: int) -> bool:
    """Fill `row` (width,) with the schedule before the first prefill; False if decodes alone are too much."""
    for column in range(row.size):
        row[column] = 0.0
    for tier in range(2 * tpot_s.size):
        row[extra_at + FRONTIER_DECODER_LOAD + tier] = decoder[WORKER_LOAD + tier]
    return begin(worker, table, tpot_s, row)


@compiled
def _afford(
    worker: Floats,
    decoder: Floats,
    decoder_table: Floats,
    tracks_decoder: bool,
    tiers: int,
    jobs: Floats,
    job: int,
    row: Floats,
    extra_at: int,
    chosen_step: Floats,
) -> bool:
    """Book memory, slots and decode rate for one more candidate in `row` (width,); False if there is too little.

    Args:
        chosen_step: scratch for `choose_step`.
    """
    tier = int(jobs[job, JOB_TIER])
    stays = jobs[job, JOB_LOCAL_TIER] >= 0 or (tier < 0 and not tracks_decoder)
    row[extra_at + FRONTIER_KV_TOKENS] += jobs[job, JOB_KV_TOKENS] if stays else jobs[job, JOB_PROMPT_TOKENS]
    if row[extra_at + FRONTIER_KV_TOKENS] > worker[WORKER_KV_FREE_TOKENS]:
        return False
    if stays:
        row[extra_at + FRONTIER_SLOTS] += 1 if tier >= 0 else 0
        return bool(row[extra_at + FRONTIER_SLOTS] <= worker[WORKER_FREE_SLOTS])
    if not tracks_decoder:
        return True
    row[extra_at + FRONTIER_DECODER_KV_TOKENS] += jobs[job, JOB_KV_TOKENS]
    if row[extra_at + FRONTIER_DECODER_KV_TOKENS] > decoder[WORKER_KV_FREE_TOKENS]:
        return False
    if tier < 0:
        return True
    row[extra_at + FRONTIER_DECODER_SLOTS] += 1
    if row[extra_at + FRONTIER_DECODER_SLOTS] > decoder[WORKER_FREE_SLOTS]:
        return False
    load = row[extra_at + FRONTIER_DECODER_LOAD :]
    load[tier] += 1
    load[tiers + tier] += jobs[job, JOB_KV_TOKENS]
    return choose_step(decoder, decoder_table, tiers, load, chosen_step)


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
    """Merge two frontiers into a third without dominated schedules, and return how many rows it has.

    Args:
        skipped, skips: schedules without the job at hand, and their number.
        taken, takes: schedules with it, and their number.
    """
    size, skip, take = 0, 0, 0
    least_s = np.inf
    while skip < skips or take < takes:
        if take == takes:
            from_skipped = True
        elif skip == skips:
            from_skipped = False
        else:
            ahead = skipped[skip, extra_at + FRONTIER_VALUE] - taken[take, extra_at + FRONTIER_VALUE]
            cheaper = skipped[skip, extra_at + FRONTIER_SPENT_S] <= taken[take, extra_at + FRONTIER_SPENT_S]
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
            spent[0] += size * _COMPARE_WORK
        else:
            dominated = row[extra_at + FRONTIER_SPENT_S] >= least_s - _ROUNDING_S
            least_s = min(least_s, row[extra_at + FRONTIER_SPENT_S])
        if not dominated and size < into.shape[0]:
            copy_floats(row, into[size])
            size += 1
    return size


@compiled
def _dominates(left: Floats, right: Floats, extra_at: int, tiers: int) -> bool:
    """Return whether any continuation of row `right` is possible from row `left` too, whose value is no less."""
    for at in range(SCHEDULE_LOAD, SCHEDULE_LOAD + 2 * tiers):
        if left[at] > right[at]:
            return False
    for at in range(extra_at + FRONTIER_KV_TOKENS, extra_at + FRONTIER_DECODE_SHARE):
        if left[at] > right[at]:
            return False
    for at in range(extra_at + FRONTIER_DECODER_LOAD, extra_at + FRONTIER_DECODER_LOAD + 2 * tiers):
        if left[at] > right[at]:
            return False
    left_end_s, right_end_s = end_of(left), end_of(right)
    if left_end_s > right_end_s + _ROUNDING_S:
        return False
    as_roomy = _left_in_step(left) >= _left_in_step(right) - _ROUNDING_S
    return bool(
        (as_roomy and left[SCHEDULE_JOINED] <= right[SCHEDULE_JOINED])
        or left_end_s + left[SCHEDULE_BASE_S] <= right_end_s
    )


@compiled
def _left_in_step(schedule: Floats) -> float:
    """Return seconds of prefill work that still fit into the open step; 0 if none is open."""
    if schedule[SCHEDULE_USED_S] == 0:
        return 0.0
    ends_s = schedule[SCHEDULE_TIGHTEST_S] - schedule[SCHEDULE_START_S] - schedule[SCHEDULE_BASE_S]
    return float(min(schedule[SCHEDULE_CAPACITY_S], ends_s) - schedule[SCHEDULE_USED_S])


@compiled
def _prune(rows: Floats, size: int, beam: int, value_per_s: float, extra_at: int) -> int:
    """Keep the `beam` schedules of a frontier whose value, less the time they used, is highest; return their number."""
    scores = np.empty(size)
    for index in range(size):
        used = value_per_s * rows[index, extra_at + FRONTIER_SPENT_S]
        scores[index] = rows[index, extra_at + FRONTIER_VALUE] - used
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
    worker: Floats,
    table: Floats,
    tiers: int,
    rows: Floats,
    size: int,
    extra_at: int,
    parents: Integers,
    added: Integers,
    chosen: Integers,
    chosen_step: Floats,
) -> int:
    """Write the most valuable schedule whose decodes can be kept up for good to `chosen`, and return its length.

    Args:
        parents, added: (nodes,), the tree of decisions: each node's parent, and the job that it added.
    """
    for index in range(size):
        if not keeps_up(worker, table, tiers, rows[index], chosen_step):
            continue
        depth = 0
        node = int(rows[index, extra_at + FRONTIER_NODE])
        while node > 0:
            chosen[depth] = added[node]
            depth += 1
            node = parents[node]
        return depth
    return -1
