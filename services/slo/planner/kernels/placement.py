"""Greedy placement: each candidate in turn goes to the pair of workers where it costs the others least."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.assignment import (
    address,
    attach,
    decode_fits,
    decode_share,
    forget,
    handover_fits,
    memory_fits,
    prefill_fits,
)
from services.slo.planner.kernels.compiled import Floats, Integers, compiled
from services.slo.planner.kernels.layout import ASK_TIER, DECODES, FITS, GROW, LIMIT, SLOTS, WORK
from services.slo.planner.kernels.plan_state import COMMITTED, WORK_LIMIT, PlanState
from services.slo.planner.kernels.schedule import end_of

DECODE_HORIZON_S = 1.0
"""A share of a worker's time taken by a decode is worth this many seconds of it when pairs of workers are compared."""


@compiled
def place_all(board: PlanState, ranking: Integers, first_option: int, options: int) -> int:
    """Place candidates in the order of `ranking` as far as they fit; those placed already are left alone.

    Args:
        first_option, options: the window of `lanes` and `decoders` to try.

    Returns:
        How many were placed.
    """
    remote_costs = np.empty((board.decoders.shape[1], 2))
    taken = 0
    for candidate in ranking:
        if board.placed[candidate, 0] >= 0 or board.spent[0] > board.settings[WORK_LIMIT]:
            continue
        lane, decoder = _cheapest_pair(board, candidate, first_option, options, remote_costs)
        if lane >= 0:
            attach(board, candidate, lane, decoder)
            taken += 1
    return taken


@compiled
def _cheapest_pair(
    board: PlanState, candidate: int, first_option: int, options: int, remote_costs: Floats
) -> tuple[int, int]:
    job = int(board.settings[COMMITTED]) + candidate
    lanes, decoders = board.lanes, board.decoders
    first_decoder = _window(decoders[candidate], first_option)
    last_decoder = min(first_decoder + options, decoders.shape[1])
    first_lane = _window(lanes[candidate], first_option)
    for other in range(first_decoder, last_decoder):
        decoder = decoders[candidate, other]
        fits = decoder >= 0 and decode_fits(board, job, decoder)
        remote_costs[other, 0] = board.cost[0] if fits else np.inf
        remote_costs[other, 1] = board.cost[1]
    best, best_lane, best_decoder = np.inf, -1, -1
    for option in range(first_lane, min(first_lane + options, lanes.shape[1])):
        lane = lanes[candidate, option]
        if lane < 0:
            continue
        local_cost = _local_cost(board, candidate, lane)
        if local_cost < best:
            best, best_lane, best_decoder = local_cost, lane, lane
        other = _cheapest_decoder(board, candidate, job, option, first_decoder, last_decoder, remote_costs)
        if other < 0:
            continue
        address(board, candidate, lane, decoders[candidate, other])
        if prefill_fits(board, job, lane) == FITS:
            cost = _prefill_cost(board, job) + _remote_cost(board, candidate, option, other, remote_costs)
            if cost < best:
                best, best_lane, best_decoder = cost, lane, decoders[candidate, other]
    return best_lane, best_decoder


@compiled
def _window(options: Integers, first: int) -> int:
    """A later window of options; the first one again for a candidate that has no more."""
    return first if first < options.size and options[first] >= 0 else 0


@compiled
def _local_cost(board: PlanState, candidate: int, lane: int) -> float:
    """Cost of prefilling and decoding on one worker; infinite if it cannot."""
    worker = board.workers[lane]
    job = address(board, candidate, lane, lane)
    tier = int(board.jobs[job, ASK_TIER])
    if worker[DECODES] == 0 or (tier >= 0 and worker[SLOTS] < 1) or not memory_fits(board, job, lane, lane):
        return np.inf
    if prefill_fits(board, job, lane) != FITS:
        return np.inf
    cost = _prefill_cost(board, job)
    if tier >= 0 and board.lanes.shape[1] > 1:
        context_tokens = board.jobs[job, GROW]
        decode_share(worker, board.tables[lane], board.tpots, tier, context_tokens, board.scratch, board.cost)
        forget(worker, board.tpots.size, tier, context_tokens)
        cost += DECODE_HORIZON_S * board.cost[0]
    return cost


@compiled
def _cheapest_decoder(
    board: PlanState, candidate: int, job: int, option: int, first: int, last: int, remote_costs: Floats
) -> int:
    lane = board.lanes[candidate, option]
    best, found = np.inf, -1
    for other in range(first, last):
        decoder = board.decoders[candidate, other]
        cost = _remote_cost(board, candidate, option, other, remote_costs)
        if (
            cost < best
            and decoder != lane
            and memory_fits(board, job, lane, decoder)
            and handover_fits(board, candidate, job, lane, decoder, remote_costs[other, 1])
        ):
            best, found = cost, other
    return found


@compiled
def _remote_cost(board: PlanState, candidate: int, option: int, other: int, remote_costs: Floats) -> float:
    return float(DECODE_HORIZON_S * remote_costs[other, 0] + board.handover_s[candidate, option, other])


@compiled
def _prefill_cost(board: PlanState, job: int) -> float:
    """Seconds of the lane's time, dearer the more of the candidate's own deadline the lane is booked for."""
    return float(board.jobs[job, WORK] * (1 + end_of(board.state) / max(board.jobs[job, LIMIT], 1e-9)))
