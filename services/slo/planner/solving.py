"""One round's search: place greedily, then look for something better until that gains nothing or costs too much."""

from __future__ import annotations

import enum

import numpy as np

from services.slo.planner.kernels.compiled import Integers
from services.slo.planner.kernels.exchange import exchange
from services.slo.planner.kernels.greedy import contested_lanes, place
from services.slo.planner.kernels.improvement import ANY_SOLVER, DYNAMIC_ONLY, MOORE_HODGSON_ONLY, improve_lane
from services.slo.planner.kernels.plan_state import WORK_LIMIT, PlanState

_PASSES = 3


class Solver(enum.Enum):
    """The parts of the search; all together is what a round uses, one alone is for comparison."""

    ALL = enum.auto()
    GREEDY = enum.auto()
    DYNAMIC = enum.auto()
    MOORE_HODGSON = enum.auto()
    EXCHANGE = enum.auto()


def solve(board: PlanState, previous: Integers, window: int, solver: Solver) -> None:
    """Fill `board.placed`; arguments as of `place`."""
    ranking = np.full(board.placed.shape[0], -1, dtype=np.int64)
    if place(board, previous, window, ranking) == 0 or solver is Solver.GREEDY:
        return
    for _ in range(_PASSES):
        gained = 0.0
        if solver is not Solver.EXCHANGE:
            gained += _improve_lanes(board, previous, window, ranking, solver)
        if solver in {Solver.ALL, Solver.EXCHANGE} and _within_limit(board):
            gained += exchange(board, ranking)
        if gained <= 0 or not _within_limit(board):
            return


def _within_limit(board: PlanState) -> bool:
    return bool(board.spent[0] <= board.settings[WORK_LIMIT])


def _improve_lanes(board: PlanState, previous: Integers, window: int, ranking: Integers, solver: Solver) -> float:
    """Solve contested lanes one after the other; what lost its place is offered elsewhere."""
    part = {Solver.DYNAMIC: DYNAMIC_ONLY, Solver.MOORE_HODGSON: MOORE_HODGSON_ONLY}.get(solver, ANY_SOLVER)
    gained = 0.0
    for lane in contested_lanes(board).tolist():
        if not _within_limit(board):
            break
        gain = improve_lane(board, lane, ranking, part)
        if gain > 0:
            place(board, previous, window, ranking)
            gained += gain
    return gained
