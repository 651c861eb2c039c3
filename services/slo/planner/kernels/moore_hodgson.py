"""Moore and Hodgson's rule: with equal values and prefill time alone scarce, the largest number of prompts in time.

Take prompts in order of due time; whenever one would be late, let go of the longest taken so far. O(n log n) there,
O(n^2) here, since letting go of one prompt re-packs the steps after it.
"""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import FITS, STATE_COUNTS, WORK
from services.slo.planner.kernels.schedule import advance, begin


@compiled
def solve_moore_hodgson(
    lane: Floats,
    table: Floats,
    tpots: Floats,
    jobs: Floats,
    sequence: Integers,
    committed: int,
    spent: Floats,
    chosen: Integers,
) -> int:
    """Choose among the candidates in `sequence`; arguments and result as of `solve_frontier`.

    Decode rate and memory are not looked at.
    """
    kept = np.empty(sequence.size, dtype=np.int64)
    states = np.empty((sequence.size + 1, STATE_COUNTS + 2 * tpots.size))
    if not begin(lane, table, tpots, states[0]):
        return -1
    size = 0
    for job in sequence:
        kept[size] = job
        size += 1
        at = size - 1
        while at < size:
            copy_floats(states[at], states[at + 1])
            spent[0] += 1
            if advance(lane, table, tpots, jobs, kept[at], states[at + 1]) == FITS:
                at += 1
                continue
            longest = -1
            for index in range(at + 1):
                if kept[index] >= committed and (longest < 0 or jobs[kept[index], WORK] > jobs[kept[longest], WORK]):
                    longest = index
            if longest < 0:
                return -1
            for index in range(longest, size - 1):
                kept[index] = kept[index + 1]
            size -= 1
            at = longest
    found = 0
    for index in range(size):
        if kept[index] >= committed:
            chosen[found] = kept[index]
            found += 1
    return found
