"""The first plan of a round: promised prefills keep their place, then candidates follow, best first."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_floats, falling
from services.slo.planner.kernels.compiled import Integers, compiled, entry
from services.slo.planner.kernels.layout import (
    ASK_TIER,
    DECODE_RATE,
    FITS,
    KV_FREE,
    KV_FULL,
    KV_PROMPT,
    LIMIT,
    PER_TOKEN,
    VALUE,
)
from services.slo.planner.kernels.placement import place_all
from services.slo.planner.kernels.plan_state import COMMITTED, PlanState
from services.slo.planner.kernels.pricing import share_of
from services.slo.planner.kernels.schedule import advance, begin


@compiled
def protect(board: PlanState) -> None:
    """Make limits of the promises that can still be kept; those that cannot keep their place but bind nobody."""
    saved = np.empty_like(board.state)
    for worker in range(board.workers.shape[0]):
        row, table = board.workers[worker], board.tables[worker]
        lost = not begin(row, table, board.tpots, board.state)
        for at in range(board.queued[worker]):
            job = board.order[worker, at]
            outcome = DECODE_RATE
            for _ in range(2):
                if lost:
                    board.jobs[job, LIMIT] = np.inf
                    break
                copy_floats(board.state, saved)
                outcome = advance(row, table, board.tpots, board.jobs, job, board.state)
                if outcome == FITS:
                    break
                copy_floats(saved, board.state)
                board.jobs[job, LIMIT] = np.inf
            lost = lost or outcome != FITS


@compiled
def rank(board: PlanState, ranking: Integers) -> None:
    """Candidates by value for what they use, most first; what is asked for more counts for more."""
    first = int(board.settings[COMMITTED])
    size = board.placed.shape[0]
    uses = np.zeros((size, 3))
    available = np.zeros(3)
    latest = 0.0
    for candidate in range(size):
        job = first + candidate
        lane = board.lanes[candidate, 0]
        uses[candidate, 0] = board.jobs[job, KV_PROMPT] - board.cached[candidate, 0]
        if lane >= 0:
            uses[candidate, 0] *= board.workers[lane, PER_TOKEN]
        uses[candidate, 1] = board.jobs[job, KV_FULL]
        decoder = board.decoders[candidate, 0] if board.decoders.shape[1] > 0 else lane
        tier = int(board.jobs[job, ASK_TIER])
        if tier >= 0 and decoder >= 0:
            uses[candidate, 2] = share_of(board, decoder, job)
        if board.jobs[job, LIMIT] < np.inf:
            latest = max(latest, board.jobs[job, LIMIT])
    for worker in range(board.workers.shape[0]):
        available[0] += latest
        available[1] += max(0.0, board.workers[worker, KV_FREE])
        available[2] += 1.0
    cost = np.full(size, 1e-12)
    for resource in range(3):
        asked = 0.0
        for candidate in range(size):
            asked += uses[candidate, resource]
        if asked > 0 and available[resource] > 0:
            for candidate in range(size):
                cost[candidate] += uses[candidate, resource] * asked / available[resource] ** 2
    density = np.empty(size)
    for candidate in range(size):
        density[candidate] = board.jobs[first + candidate, VALUE] / cost[candidate]
    order = falling(density, size)
    for at in range(size):
        ranking[at] = order[at]


@entry
def place(board: PlanState, window: int, ranking: Integers) -> int:
    """Place what can be placed without search: everyone in the order of `ranking`.

    Args:
        window: options of each candidate that are tried at first; the others follow, as many at a time.
        ranking: filled in if empty so far.

    Returns:
        How many found no place.
    """
    if ranking[0] < 0:
        protect(board)
        rank(board, ranking)
    missing = 0
    for candidate in range(board.placed.shape[0]):
        missing += 1 if board.placed[candidate, 0] < 0 else 0
    for start in range(0, max(board.lanes.shape[1], board.decoders.shape[1]), window):
        if missing > 0:
            missing -= place_all(board, ranking, start, window)
    return missing


@entry
def contested_lanes(board: PlanState) -> Integers:
    """Lanes that have candidates and are wanted by more, the most wanted first."""
    wanted = np.zeros(board.workers.shape[0])
    held = np.zeros(board.workers.shape[0])
    for candidate in range(board.placed.shape[0]):
        if board.placed[candidate, 0] >= 0:
            held[board.placed[candidate, 0]] += 1
        else:
            for option in range(board.lanes.shape[1]):
                if board.lanes[candidate, option] >= 0:
                    wanted[board.lanes[candidate, option]] += 1
    size = 0
    order = falling(wanted, wanted.size)
    for lane in order:
        if wanted[lane] > 0 and held[lane] > 0:
            order[size] = lane
            size += 1
    return order[:size]
