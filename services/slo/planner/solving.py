"""One round's search: place greedily, then look for something better until that gains nothing or costs too much."""

from __future__ import annotations

import numpy as np

from services.slo.planner.kernels.compiled import Integers
from services.slo.planner.kernels.exchange import exchange
from services.slo.planner.kernels.greedy import contested_lanes, place
from services.slo.planner.kernels.improvement import improve_lane
from services.slo.planner.kernels.plan_state import WORK_LIMIT, PlanState

_PASSES = 3


def solve(board: PlanState, window: int) -> None:
    """Fill `board.placed`; arguments as of `place`."""
    ranking = np.full(board.placed.shape[0], -1, dtype=np.int64)
    if place(board, window, ranking) == 0:
        return
    for _ in range(_PASSES):
        gained = _improve_lanes(board, window, ranking)
        if _within_limit(board):
            gained += exchange(board, ranking)
        if gained <= 0 or not _within_limit(board):
            return


def _within_limit(board: PlanState) -> bool:
    return bool(board.spent[0] <= board.settings[WORK_LIMIT])


def _improve_lanes(board: PlanState, window: int, ranking: Integers) -> float:
    """Solve contested lanes one after the other; what lost its place is offered elsewhere."""
    gained = 0.0
    for lane in contested_lanes(board).tolist():
        if not _within_limit(board):
            break
        gain = improve_lane(board, lane, ranking)
        if gain > 0:
            place(board, window, ranking)
            gained += gain
    return gained
