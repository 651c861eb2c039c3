"""Moore and Hodgson's rule: with equal values and prefill time alone scarce, the largest number of prompts in time.

Take prompts in order of due time; whenever one would be late, take out the longest so far (J. M. Moore, "An n job, one
machine sequencing algorithm for minimizing the number of late jobs", 1968). That is O(n log n) there and O(n^2) here,
since taking one prompt out re-packs the steps after it.
"""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import FITS, JOB_WORK_S, SCHEDULE_LOAD
from services.slo.planner.kernels.schedule import advance, begin


@compiled
def solve_moore_hodgson(
    worker: Floats,
    table: Floats,
    tpot_s: Floats,
    jobs: Floats,
    sequence: Integers,
    promised: int,
    spent: Floats,
    chosen: Integers,
) -> int:
    """Choose among the candidates in `sequence`, blind to decode rate and memory.

    Arguments and result are as of `solve_frontier`, but that those due first come first in `chosen`.
    """
    kept = np.empty(sequence.size, dtype=np.int64)
    schedules = np.empty((sequence.size + 1, SCHEDULE_LOAD + 2 * tpot_s.size))
    if not begin(worker, table, tpot_s, schedules[0]):
        return -1
    size = 0
    for job in sequence:
        kept[size] = job
        size += 1
        at = size - 1
        while at < size:
            copy_floats(schedules[at], schedules[at + 1])
            spent[0] += 1
            if advance(worker, table, tpot_s, jobs, kept[at], schedules[at + 1]) == FITS:
                at += 1
                continue
            longest = -1
            for index in range(at + 1):
                longer = longest < 0 or jobs[kept[index], JOB_WORK_S] > jobs[kept[longest], JOB_WORK_S]
                if kept[index] >= promised and longer:
                    longest = index
            if longest < 0:
                return -1
            for index in range(longest, size - 1):
                kept[index] = kept[index + 1]
            size -= 1
            at = longest
    found = 0
    for index in range(size):
        if kept[index] >= promised:
            chosen[found] = kept[index]
            found += 1
    return found
