"""Search with rollback: let a promise-to-be go, offer its room to others, and take it back if that gained nothing."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.arrays import copy_pairs
from services.slo.planner.kernels.assignment import detach, try_pair
from services.slo.planner.kernels.compiled import Integers, compiled, entry
from services.slo.planner.kernels.improvement import restore, total_value
from services.slo.planner.kernels.layout import VALUE
from services.slo.planner.kernels.plan_state import COMMITTED, WORK_LIMIT, PlanState


@entry
def exchange(board: PlanState, ranking: Integers) -> float:
    """Try to replace each placed candidate by ones without a place, and the reverse.

    Args:
        ranking: all candidates, most value for what they use first.

    Returns:
        Value gained, never negative.
    """
    first = int(board.settings[COMMITTED])
    before = total_value(board)
    value = before
    saved = np.empty_like(board.placed)
    copy_pairs(board.placed, saved)
    for index in range(ranking.size - 1, -1, -1):
        victim = ranking[index]
        if board.spent[0] > board.settings[WORK_LIMIT]:
            break
        if board.placed[victim, 0] < 0:
            continue
        lane, decoder = board.placed[victim, 0], board.placed[victim, 1]
        detach(board, victim)
        gained = _fill_with_others(board, ranking, victim, lane)
        if gained <= board.jobs[first + victim, VALUE] + 1e-9:
            restore(board, saved)
        else:
            value += gained - board.jobs[first + victim, VALUE]
            try_pair(board, victim, lane, decoder)
            copy_pairs(board.placed, saved)
    for loser in ranking:
        if board.spent[0] > board.settings[WORK_LIMIT]:
            break
        if board.placed[loser, 0] < 0:
            for option in range(board.lanes.shape[1]):
                lane = board.lanes[loser, option]
                if lane >= 0 and _make_room(board, ranking, loser, lane, saved):
                    copy_pairs(board.placed, saved)
                    break
    return total_value(board) - before


@compiled
def _fill_with_others(board: PlanState, ranking: Integers, victim: int, lane: int) -> float:
    """Offer a lane's room to candidates without a place, the victim last. Returns the value placed."""
    first = int(board.settings[COMMITTED])
    gained = 0.0
    for candidate in ranking:
        if board.placed[candidate, 0] >= 0 or candidate == victim:
            continue
        if board.spent[0] > board.settings[WORK_LIMIT]:
            break
        for option in range(board.lanes.shape[1]):
            if board.lanes[candidate, option] == lane and _try_lane(board, candidate, lane):
                gained += board.jobs[first + candidate, VALUE]
                break
    return gained


@compiled
def _try_lane(board: PlanState, candidate: int, lane: int) -> bool:
    if try_pair(board, candidate, lane, lane):
        return True
    for other in range(board.decoders.shape[1]):
        decoder = board.decoders[candidate, other]
        if decoder >= 0 and decoder != lane and try_pair(board, candidate, lane, decoder):
            return True
    return False


@compiled
def _make_room(board: PlanState, ranking: Integers, loser: int, lane: int, saved: Integers) -> bool:
    """Let the lane's cheapest go until the loser fits; undone unless they were worth less."""
    first = int(board.settings[COMMITTED])
    worth = board.jobs[first + loser, VALUE]
    lost = 0.0
    removed = np.empty(board.placed.shape[0], dtype=np.int64)
    removals = 0
    for index in range(ranking.size - 1, -1, -1):
        victim = ranking[index]
        if board.placed[victim, 0] != lane:
            continue
        cost = board.jobs[first + victim, VALUE]
        if lost + cost >= worth - 1e-9:
            continue
        detach(board, victim)
        lost += cost
        removed[removals] = victim
        removals += 1
        if _try_lane(board, loser, lane):
            for again in range(removals - 1, -1, -1):
                back = removed[again]
                if board.placed[back, 0] < 0:
                    try_pair(board, back, lane, saved[back, 1])
            return True
        if board.spent[0] > board.settings[WORK_LIMIT]:
            break
    restore(board, saved)
    return False
