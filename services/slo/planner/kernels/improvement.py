"""Better sets for one lane: what it took greedily, against the candidates that found no room there."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_pairs, falling
from services.slo.planner.kernels.assignment import (
    address,
    attach,
    decode_fits,
    detach,
    handover_fits,
    memory_fits,
    try_pair,
)
from services.slo.planner.kernels.compiled import Integers, compiled, entry
from services.slo.planner.kernels.frontier import TRANSITION_WORK, solve_frontier
from services.slo.planner.kernels.layout import (
    DECODES,
    DUE,
    VALUE,
)
from services.slo.planner.kernels.moore_hodgson import solve_moore_hodgson
from services.slo.planner.kernels.plan_state import COMMITTED, WORK_LIMIT, PlanState
from services.slo.planner.kernels.pricing import price_lane

EXACT_CANDIDATES = 12
"""Up to so many the dynamic programme compares schedules in full."""
EXACT_BEAM = 1024
BEAM = 96
LEAST_BEAM = 8


@compiled
def total_value(board: PlanState) -> float:
    first = int(board.settings[COMMITTED])
    value = 0.0
    board.spent[0] += board.placed.shape[0] / 32
    for candidate in range(board.placed.shape[0]):
        if board.placed[candidate, 0] >= 0:
            value += board.jobs[first + candidate, VALUE]
    return value


@compiled
def restore(board: PlanState, saved: Integers) -> None:
    """Return to an earlier placement."""
    board.spent[0] += board.placed.shape[0] / 16
    for candidate in range(saved.shape[0]):
        same = board.placed[candidate, 0] == saved[candidate, 0] and board.placed[candidate, 1] == saved[candidate, 1]
        if board.placed[candidate, 0] >= 0 and not same:
            detach(board, candidate)
    for candidate in range(saved.shape[0]):
        if board.placed[candidate, 0] < 0 and saved[candidate, 0] >= 0:
            attach(board, candidate, saved[candidate, 0], saved[candidate, 1])


@entry
def improve_lane(board: PlanState, lane: int, ranking: Integers) -> float:
    """Solve the lane anew over its own candidates and those without a place that have it among their options.

    Args:
        ranking: all candidates, in the order in which left-over room is offered.

    Returns:
        Value gained over all lanes, never negative.
    """
    first = int(board.settings[COMMITTED])
    saved = np.empty_like(board.placed)
    best = np.empty_like(board.placed)
    copy_pairs(board.placed, saved)
    copy_pairs(board.placed, best)
    before = total_value(board)
    members = np.empty((saved.shape[0], 2), dtype=np.int64)
    size = _release(board, lane, saved, members)
    if size == 0:
        return 0.0
    sequence = _in_order(board, lane, members, size)
    there, tracks = _common_decoder(lane, members, size)
    losses = np.zeros(sequence.size)
    extras = np.zeros(sequence.size)
    price = price_lane(board, lane, there, tracks, sequence, losses, extras)
    pairs = np.empty(saved.shape[0], dtype=np.int64)
    for candidate in range(saved.shape[0]):
        pairs[candidate] = -1
    for index in range(size):
        pairs[members[index, 0]] = members[index, 1]
    chosen = np.empty(sequence.size, dtype=np.int64)
    best_value = before
    for attempt in range(2):
        if attempt == 0:
            if not _equal_values(board, members, size):
                continue
            found = solve_moore_hodgson(
                board.workers[lane], board.tables[lane], board.tpots, board.jobs, sequence, first, board.spent, chosen
            )
        else:
            exact = size <= EXACT_CANDIDATES
            affordable = (board.settings[WORK_LIMIT] - board.spent[0]) / (TRANSITION_WORK * sequence.size)
            if affordable < LEAST_BEAM:
                continue
            beam = EXACT_BEAM if exact else max(LEAST_BEAM, min(BEAM, int(affordable / 2)))
            found = solve_frontier(
                board.workers[lane],
                board.tables[lane],
                board.tpots,
                board.jobs,
                sequence,
                first,
                board.workers[there],
                board.tables[there],
                tracks,
                losses,
                extras,
                price,
                exact,
                beam,
                board.settings[WORK_LIMIT],
                board.spent,
                chosen,
            )
        for index in range(max(0, found)):
            try_pair(board, chosen[index] - first, lane, pairs[chosen[index] - first])
        _fill(board, lane, ranking, pairs)
        value = total_value(board)
        if value > best_value + 1e-9:
            best_value = value
            copy_pairs(board.placed, best)
        for index in range(size):
            if board.placed[members[index, 0], 0] >= 0:
                detach(board, members[index, 0])
            address(board, members[index, 0], lane, members[index, 1])
    restore(board, best)
    return best_value - before


@compiled
def _release(board: PlanState, lane: int, saved: Integers, members: Integers) -> int:
    """Let go of the lane's candidates; list them, and the losers that could run here, with their decoders."""
    size = 0
    losers = 0
    for candidate in range(saved.shape[0]):
        if saved[candidate, 0] == lane:
            members[size, 0] = candidate
            members[size, 1] = saved[candidate, 1]
            size += 1
            detach(board, candidate)
    held = size
    for candidate in range(saved.shape[0]):
        if saved[candidate, 0] < 0:
            decoder = _decoder_for(board, candidate, lane)
            if decoder >= 0:
                members[size, 0] = candidate
                members[size, 1] = decoder
                size += 1
                losers += 1
    if losers == 0:
        for index in range(held):
            attach(board, members[index, 0], lane, members[index, 1])
        return 0
    for index in range(size):
        address(board, members[index, 0], lane, members[index, 1])
    return size


@compiled
def _decoder_for(board: PlanState, candidate: int, lane: int) -> int:
    """Where a loser would decode if this lane prefilled it; -1 if the lane is none of its options."""
    offered = False
    for option in range(board.lanes.shape[1]):
        offered = offered or board.lanes[candidate, option] == lane
    if not offered:
        return -1
    if board.workers[lane, DECODES] > 0:
        return lane
    job = address(board, candidate, lane, -1)
    for other in range(board.decoders.shape[1]):
        decoder = board.decoders[candidate, other]
        if (
            decoder >= 0
            and memory_fits(board, job, lane, decoder)
            and decode_fits(board, job, decoder)
            and handover_fits(board, candidate, job, lane, decoder, board.cost[1])
        ):
            return int(decoder)
    return -1


@compiled
def _in_order(board: PlanState, lane: int, members: Integers, size: int) -> Integers:
    """The lane's promised prefills and all members, by due time."""
    first = int(board.settings[COMMITTED])
    held = board.queued[lane]
    jobs = np.empty(held + size, dtype=np.int64)
    earliness = np.empty(jobs.size)
    for at in range(jobs.size):
        jobs[at] = board.order[lane, at] if at < held else first + members[at - held, 0]
        earliness[at] = -board.jobs[jobs[at], DUE]
    order = falling(earliness, jobs.size)
    for at in range(jobs.size):
        order[at] = jobs[order[at]]
    return order


@compiled
def _common_decoder(lane: int, members: Integers, size: int) -> tuple[int, bool]:
    """The one other worker where all members would decode; the lane itself and False if there is none such."""
    there = members[0, 1]
    for index in range(1, size):
        if members[index, 1] != there:
            return lane, False
    return (lane, False) if there == lane else (int(there), True)


@compiled
def _equal_values(board: PlanState, members: Integers, size: int) -> bool:
    first = int(board.settings[COMMITTED])
    value = board.jobs[first + members[0, 0], VALUE]
    different = 0
    for index in range(1, size):
        different += 1 if board.jobs[first + members[index, 0], VALUE] != value else 0
    return different == 0


@compiled
def _fill(board: PlanState, lane: int, ranking: Integers, pairs: Integers) -> None:
    """Offer left-over room to members that were not chosen."""
    for candidate in ranking:
        if board.spent[0] > board.settings[WORK_LIMIT]:
            break
        if pairs[candidate] >= 0 and board.placed[candidate, 0] < 0:
            try_pair(board, candidate, lane, pairs[candidate])
