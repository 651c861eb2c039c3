"""A planning round: who is guaranteed, where each runs, and what the others are told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from services.slo.planner.kernels.conclusion import conclude
from services.slo.planner.kernels.layout import (
    BINDING,
    DECODE_RATE,
    DRAFT,
    EARLIEST,
    EXPECTED,
    KV_MEMORY,
    LATEST,
    NEXT_EVENT,
    PER_TIER,
    POSSIBLE,
    PREFILL_TIME,
    REASON_COLUMNS,
)
from services.slo.planner.kernels.plan_state import COMMITTED, PlanState
from services.slo.planner.kernels.reserve import reserve_headroom
from services.slo.planner.outcome import Binding, Decision, Round, StepPlan, Verdict
from services.slo.planner.packing import CHOICES, Packed, pack
from services.slo.planner.problem import Candidate, Problem
from services.slo.planner.solving import solve

LEAST_WORK = 4_400
MOST_WORK = 60_000
"""One unit of work is one prefill scheduled. A millisecond of search is 14,000 of them on the core this was calibrated
on, packing and answering apart; `benchmarks.planner` measures it again."""

_LEAST_REPLAN_S = 1e-3

_BINDINGS = {PREFILL_TIME: Binding.PREFILL_TIME, DECODE_RATE: Binding.DECODE_RATE, KV_MEMORY: Binding.KV_MEMORY}


def plan_round(problem: Problem) -> Round:
    """Decide about every candidate, given what is promised already.

    Time grows with the candidates and with what is promised on the few workers looked at for each, not with the number
    of workers; it is bounded by `problem.work_limit`, at which the best plan so far is returned. The same problem gives
    the same round.
    """
    if not problem.candidates:
        return Round((), MappingProxyType({}), 0)
    if not (problem.topology.prefill and problem.topology.decode):
        return Round(tuple(_without_workers(candidate) for candidate in problem.candidates), MappingProxyType({}), 0)
    packed = pack(problem, float(problem.work_limit or default_work_limit(len(problem.candidates))))
    board = packed.board
    solve(board, CHOICES)
    found_room = board.placed[:, 0] >= 0
    if problem.typical_arrival is not None:
        reserve_headroom(board, problem.cost_threshold)
    return _answer(problem, packed, found_room.tolist())


def default_work_limit(candidates: int) -> int:
    """About 0.35 ms of search up to 64 candidates.

    Beyond, what it takes to offer nearly everyone a place, which grows with the square of their number: 2 ms for 256.
    It is cut off at 4 ms.
    """
    offers = int(0.42 * candidates * candidates)
    return min(MOST_WORK, max(LEAST_WORK, 1_000 + offers))


def _answer(problem: Problem, packed: Packed, found_room: Sequence[bool]) -> Round:
    board = packed.board
    finish = np.zeros(board.jobs.shape[0])
    steps = np.zeros((len(packed.workers), 3))
    reasons = np.zeros((len(problem.candidates), REASON_COLUMNS))
    conclude(board, packed.releases, finish, steps, reasons)
    placed = board.placed.tolist()
    first = int(board.settings[COMMITTED])
    finish_s = finish[first : first + len(placed)].tolist()
    ids = [worker.worker_id for worker in packed.workers]
    step_rows = steps.tolist()
    reason_rows = reasons.tolist()
    touched = {index for pair in placed for index in pair if index >= 0}
    plans = {index: plan for index in sorted(touched) if (plan := _step_plan(board, index, step_rows[index]))}
    decisions = []
    for candidate, (lane, decoder), first_token_s, reason, fitted in zip(
        problem.candidates, placed, finish_s, reason_rows, found_room, strict=True
    ):
        if lane < 0:
            refused = _refused(candidate, reason)
            decisions.append(replace(refused, binding=Binding.PRICE) if fitted else refused)
            continue
        plan, tier = plans.get(decoder), candidate.tier
        step_s, drafts = (plan.step_s, plan.draft_tokens[tier]) if plan and tier >= 0 else (None, 0)
        decisions.append(
            Decision(
                candidate.candidate_id,
                Verdict.GUARANTEED,
                ids[lane],
                ids[decoder],
                first_token_s,
                step_s,
                drafts,
                Binding.NONE,
                earliest_s=0.0,
                replan_s=None,
                work_per_value=candidate.work_per_value,
            )
        )
    return Round(
        decisions=tuple(decisions),
        steps=MappingProxyType({ids[index]: plan for index, plan in plans.items()}),
        work=int(board.spent[0]),
    )


def _step_plan(board: PlanState, worker: int, step: list[float]) -> StepPlan | None:
    step_s, row, share = step
    if step_s == math.inf:
        return None
    drafts = board.tables[worker, int(row), 1 + DRAFT :: PER_TIER].tolist()
    return StepPlan(step_s, tuple(max(0, int(draft)) for draft in drafts), share)


def _refused(candidate: Candidate, reason: list[float]) -> Decision:
    earliest_s = reason[EARLIEST] if reason[EARLIEST] < math.inf else None
    expected_s = reason[EXPECTED] if reason[EXPECTED] < math.inf else None
    latest_s = reason[LATEST]
    verdict, replan_s = Verdict.NOT_GUARANTEED, None
    if not reason[POSSIBLE]:
        verdict = Verdict.IMPOSSIBLE
        earliest_s = None
    elif latest_s > _LEAST_REPLAN_S:
        verdict = Verdict.HOLD
        replan_s = min(latest_s, max(reason[NEXT_EVENT], _LEAST_REPLAN_S))
        if replan_s == math.inf:
            replan_s = None
    binding = _BINDINGS[int(reason[BINDING])]
    name, work = candidate.candidate_id, candidate.work_per_value
    return Decision(name, verdict, "", "", expected_s, None, 0, binding, earliest_s, replan_s, work)


def _without_workers(candidate: Candidate) -> Decision:
    name, work = candidate.candidate_id, candidate.work_per_value
    return Decision(name, Verdict.NOT_GUARANTEED, "", "", None, None, 0, Binding.NO_WORKER, None, None, work)
