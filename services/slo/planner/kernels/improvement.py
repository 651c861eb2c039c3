"""Better sets for one prefiller: what it took greedily, against the candidates that found no place there."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.slo.planner.kernels.arrays import copy_placed, falling
from services.slo.planner.kernels.assignment import (
    attach,
    decode_fits,
    detach,
    handover_fits,
    memory_fits,
    set_destination,
    try_pair,
)
from services.slo.planner.kernels.compiled import Integers, compiled, entry
from services.slo.planner.kernels.frontier import TRANSITION_WORK, solve_frontier
from services.slo.planner.kernels.layout import (
    DECODE_STEP_S,
    JOB_DUE_S,
    JOB_VALUE,
    MEMBER_CANDIDATE,
    MEMBER_COLUMNS,
    MEMBER_DECODER,
    PLACED_DECODER,
    PLACED_PREFILLER,
    SETTING_PROMISED_JOBS,
    SETTING_WORK_LIMIT,
    WORKER_DECODES,
)
from services.slo.planner.kernels.moore_hodgson import solve_moore_hodgson
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.pricing import shadow_prices

EXACT_CANDIDATES: Final = 12
"""Candidates up to which the dynamic programme compares schedules in full. Chosen: tests compare so many with trying
every subset."""
EXACT_BEAM: Final = 1024
"""Schedules that the dynamic programme keeps while it compares them in full. Chosen: dominated ones gone, so many are
seldom left."""
BEAM: Final = 96
"""Most schedules that it keeps otherwise. Chosen: `benchmarks.planner` shows what another beam costs and gains."""
LEAST_BEAM: Final = 8
"""Schedules below which it is not worth running: it is left out where the work limit affords no more. Chosen."""
LEAST_GAIN: Final = 1e-9
"""Value below which a plan is no better than another: rounding."""
_COUNT_WORK: Final = 1 / 32
_RESTORE_WORK: Final = 1 / 16
"""Work that a look at one candidate counts as, in prefills scheduled."""


@compiled
def total_value(state: PlanState) -> float:
    """Return the value of all candidates that have a place."""
    first = int(state.settings[SETTING_PROMISED_JOBS])
    value = 0.0
    state.spent[0] += state.placed.shape[0] * _COUNT_WORK
    for candidate in range(state.placed.shape[0]):
        if state.placed[candidate, PLACED_PREFILLER] >= 0:
            value += state.jobs[first + candidate, JOB_VALUE]
    return value


@compiled
def restore(state: PlanState, saved: Integers) -> None:
    """Return to an earlier placement `saved` (C, PLACED_COLUMNS)."""
    placed = state.placed
    state.spent[0] += placed.shape[0] * _RESTORE_WORK
    for candidate in range(saved.shape[0]):
        prefiller, decoder = saved[candidate, PLACED_PREFILLER], saved[candidate, PLACED_DECODER]
        same = placed[candidate, PLACED_PREFILLER] == prefiller and placed[candidate, PLACED_DECODER] == decoder
        if placed[candidate, PLACED_PREFILLER] >= 0 and not same:
            detach(state, candidate)
    for candidate in range(saved.shape[0]):
        if placed[candidate, PLACED_PREFILLER] < 0 and saved[candidate, PLACED_PREFILLER] >= 0:
            attach(state, candidate, saved[candidate, PLACED_PREFILLER], saved[candidate, PLACED_DECODER])


@entry
def improve_prefiller(state: PlanState, prefiller: int, ranking: Integers) -> float:
    """Solve a prefiller anew over its own candidates and those without a place that have it among their options.

    Args:
        ranking: (C,), all candidates, in the order in which left-over time is offered.

    Returns:
        Value gained over all workers, never negative.
    """
    first = int(state.settings[SETTING_PROMISED_JOBS])
    saved = np.empty_like(state.placed)
    best = np.empty_like(state.placed)
    copy_placed(state.placed, saved)
    copy_placed(state.placed, best)
    before = total_value(state)
    members = np.empty((saved.shape[0], MEMBER_COLUMNS), dtype=np.int64)
    size = _release(state, prefiller, saved, members)
    if size == 0:
        return 0.0
    sequence = _in_order(state, prefiller, members, size)
    decoder, tracks_decoder = _common_decoder(prefiller, members, size)
    decode_shares = np.zeros(sequence.size)
    scarce_s = np.zeros(sequence.size)
    value_per_s = shadow_prices(state, prefiller, decoder, tracks_decoder, sequence, decode_shares, scarce_s)
    decoder_of = np.empty(saved.shape[0], dtype=np.int64)
    for candidate in range(saved.shape[0]):
        decoder_of[candidate] = -1
    for index in range(size):
        decoder_of[members[index, MEMBER_CANDIDATE]] = members[index, MEMBER_DECODER]
    chosen = np.empty(sequence.size, dtype=np.int64)
    worker, table = state.workers[prefiller], state.step_tables[prefiller]
    best_value = before
    for attempt in range(2):
        if attempt == 0:
            if not _equal_values(state, members, size):
                continue
            found = solve_moore_hodgson(worker, table, state.tpot_s, state.jobs, sequence, first, state.spent, chosen)
        else:
            exact = size <= EXACT_CANDIDATES
            affordable = (state.settings[SETTING_WORK_LIMIT] - state.spent[0]) / (TRANSITION_WORK * sequence.size)
            if affordable < LEAST_BEAM:
                continue
            beam = EXACT_BEAM if exact else max(LEAST_BEAM, min(BEAM, int(affordable / 2)))
            found = solve_frontier(
                worker,
                table,
                state.tpot_s,
                state.jobs,
                sequence,
                first,
                state.workers[decoder],
                state.step_tables[decoder],
                tracks_decoder,
                decode_shares,
                scarce_s,
                value_per_s,
                exact,
                beam,
                state.settings[SETTING_WORK_LIMIT],
                state.spent,
                chosen,
            )
        for index in range(max(0, found)):
            candidate = chosen[index] - first
            try_pair(state, candidate, prefiller, decoder_of[candidate])
        _fill(state, prefiller, ranking, decoder_of)
        value = total_value(state)
        if value > best_value + LEAST_GAIN:
            best_value = value
            copy_placed(state.placed, best)
        for index in range(size):
            candidate = members[index, MEMBER_CANDIDATE]
            if state.placed[candidate, PLACED_PREFILLER] >= 0:
                detach(state, candidate)
            set_destination(state, candidate, prefiller, members[index, MEMBER_DECODER])
    restore(state, best)
    return best_value - before


@compiled
def _release(state: PlanState, prefiller: int, saved: Integers, members: Integers) -> int:
    """Take the prefiller's candidates out, and list them and those without a place that could run there.

    Args:
        saved: (C, PLACED_COLUMNS), where everyone runs.
        members: (C, MEMBER_COLUMNS), gets the list.

    Returns:
        Number of members; 0, with everything back in its place, if nobody without a place could run there.
    """
    size = 0
    unplaced = 0
    for candidate in range(saved.shape[0]):
        if saved[candidate, PLACED_PREFILLER] == prefiller:
            members[size, MEMBER_CANDIDATE] = candidate
            members[size, MEMBER_DECODER] = saved[candidate, PLACED_DECODER]
            size += 1
            detach(state, candidate)
    released = size
    for candidate in range(saved.shape[0]):
        if saved[candidate, PLACED_PREFILLER] < 0:
            decoder = _decoder_for(state, candidate, prefiller)
            if decoder >= 0:
                members[size, MEMBER_CANDIDATE] = candidate
                members[size, MEMBER_DECODER] = decoder
                size += 1
                unplaced += 1
    if unplaced == 0:
        for index in range(released):
            attach(state, members[index, MEMBER_CANDIDATE], prefiller, members[index, MEMBER_DECODER])
        return 0
    for index in range(size):
        set_destination(state, members[index, MEMBER_CANDIDATE], prefiller, members[index, MEMBER_DECODER])
    return size


@compiled
def _decoder_for(state: PlanState, candidate: int, prefiller: int) -> int:
    """Return where a candidate would decode if this worker prefilled it; -1 if the worker is none of its options."""
    offered = False
    for option in range(state.prefillers.shape[1]):
        offered = offered or state.prefillers[candidate, option] == prefiller
    if not offered:
        return -1
    if state.workers[prefiller, WORKER_DECODES] > 0:
        return prefiller
    job = set_destination(state, candidate, prefiller, -1)
    for other in range(state.decoders.shape[1]):
        decoder = state.decoders[candidate, other]
        if (
            decoder >= 0
            and memory_fits(state, job, prefiller, decoder)
            and decode_fits(state, job, decoder)
            and handover_fits(state, candidate, job, prefiller, decoder, state.decode_cost[DECODE_STEP_S])
        ):
            return int(decoder)
    return -1


@compiled
def _in_order(state: PlanState, prefiller: int, members: Integers, size: int) -> Integers:
    """Return the jobs (n,) of the prefiller's promised prefills and of all members, by due time."""
    first = int(state.settings[SETTING_PROMISED_JOBS])
    queued = state.queued[prefiller]
    unordered = np.empty(queued + size, dtype=np.int64)
    earliness = np.empty(unordered.size)
    for at in range(unordered.size):
        if at < queued:
            unordered[at] = state.queue[prefiller, at]
        else:
            unordered[at] = first + members[at - queued, MEMBER_CANDIDATE]
        earliness[at] = -state.jobs[unordered[at], JOB_DUE_S]
    order = falling(earliness, unordered.size)
    for at in range(unordered.size):
        order[at] = unordered[order[at]]
    return order


@compiled
def _common_decoder(prefiller: int, members: Integers, size: int) -> tuple[int, bool]:
    """Return the one other worker where all members would decode and True, or the prefiller itself and False."""
    decoder = members[0, MEMBER_DECODER]
    for index in range(1, size):
        if members[index, MEMBER_DECODER] != decoder:
            return prefiller, False
    return (prefiller, False) if decoder == prefiller else (int(decoder), True)


@compiled
def _equal_values(state: PlanState, members: Integers, size: int) -> bool:
    """Return whether all members have the same value."""
    first = int(state.settings[SETTING_PROMISED_JOBS])
    value = state.jobs[first + members[0, MEMBER_CANDIDATE], JOB_VALUE]
    different = 0
    for index in range(1, size):
        different += 1 if state.jobs[first + members[index, MEMBER_CANDIDATE], JOB_VALUE] != value else 0
    return different == 0


@compiled
def _fill(state: PlanState, prefiller: int, ranking: Integers, decoder_of: Integers) -> None:
    """Offer left-over time to members that were not chosen.

    Args:
        decoder_of: (C,), where each member would decode; -1 for candidates that are no members.
    """
    for candidate in ranking:
        if state.spent[0] > state.settings[SETTING_WORK_LIMIT]:
            break
        if decoder_of[candidate] >= 0 and state.placed[candidate, PLACED_PREFILLER] < 0:
            try_pair(state, candidate, prefiller, decoder_of[candidate])
