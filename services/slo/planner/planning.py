"""A planning round: who is guaranteed, where each runs, and what the others are told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np

from services.slo.planner.kernels.conclusion import conclude
from services.slo.planner.kernels.layout import (
    CELL_COLUMNS,
    CELL_DRAFT_TOKENS,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_PROMPT_TOKENS,
    JOB_VALUE,
    LACKS_DECODE_RATE,
    LACKS_KV_MEMORY,
    LACKS_PREFILL_TIME,
    PLACED_PREFILLER,
    PLANNED_COLUMNS,
    PLANNED_STEP_ROW,
    PLANNED_STEP_S,
    REASON_BINDING,
    REASON_COLUMNS,
    REASON_EARLIEST_S,
    REASON_EXPECTED_S,
    REASON_LATEST_S,
    REASON_NEXT_EVENT_S,
    REASON_POSSIBLE,
    SETTING_PROMISED_JOBS,
    STEP_CELLS,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.reserve import reserve_headroom
from services.slo.planner.kernels.shares import leave_room
from services.slo.planner.outcome import Binding, Decision, Round, StepPlan, Verdict
from services.slo.planner.packing import CHOICES, Packed, pack
from services.slo.planner.problem import Candidate, Problem
from services.slo.planner.solving import solve
from services.slo.planner.standing import OwedArrival

LEAST_WORK: Final = 4_400
"""Work that every round may spend, in prefills scheduled. Measured with `benchmarks.planner`: a millisecond of search
is 14,000 of them on the core this was calibrated on, packing and answering apart."""
MOST_WORK: Final = 60_000
"""Work that no round may exceed, measured like `LEAST_WORK`: about 4 ms."""
_OFFER_WORK: Final = 0.42
_FIXED_WORK: Final = 1_000
"""Work that it takes to offer nearly everyone a place: a fixed part, and a factor for the square of the number of
candidates. Measured like `LEAST_WORK`."""
_LEAST_REPLAN_S: Final = 1e-3
"""Seconds before which a held candidate is not planned again. Chosen: about what a round takes."""

_BINDINGS = {
    LACKS_PREFILL_TIME: Binding.PREFILL_TIME,
    LACKS_DECODE_RATE: Binding.DECODE_RATE,
    LACKS_KV_MEMORY: Binding.KV_MEMORY,
}


def plan_round(problem: Problem) -> Round:
    """Decide about every candidate, given what is promised already.

    Time grows with the candidates and with what is promised on the few workers looked at for each, not with the number
    of workers; it is bounded by `problem.work_limit`, at which the best plan so far is returned. The same problem gives
    the same round.

    Raises:
        ValueError: if the workers have different tiers, or a candidate asks for one that there is not.
    """
    if not problem.candidates:
        return Round((), MappingProxyType({}), 0)
    if not (problem.topology.prefill and problem.topology.decode):
        return Round(tuple(_without_workers(candidate) for candidate in problem.candidates), MappingProxyType({}), 0)
    packed = pack(problem, float(problem.work_limit or default_work_limit(len(problem.candidates))))
    state = packed.state
    solve(state, CHOICES)
    fitted = state.placed[:, PLACED_PREFILLER] >= 0
    if problem.typical_arrival is not None:
        reserve_headroom(state, problem.cost_threshold)
    if problem.owed_arrival is not None:
        # Whoever is owed much is spared the price; beside others' promises a value counts as it is.
        first = int(state.settings[SETTING_PROMISED_JOBS])
        values = [candidate.value for candidate in problem.candidates]
        state.jobs[first : first + len(values), JOB_VALUE] = values
    worth = state.placed[:, PLACED_PREFILLER] >= 0
    if problem.owed_arrival is not None:
        _leave_room(state, problem.candidates, problem.owed_arrival)
    return _answer(problem, packed, fitted.tolist(), worth.tolist())


def _leave_room(state: PlanState, candidates: Sequence[Candidate], owed: OwedArrival) -> None:
    """Take candidates out of the plan that would leave no room for the owed arrival and have to."""
    leaves_room = np.array([candidate.standing.leaves_room for candidate in candidates], dtype=np.int64)
    # The row of the typical arrival, which has done its work.
    state.jobs[-1] = 0.0
    state.jobs[-1, [JOB_DUE_S, JOB_PROMPT_TOKENS, JOB_KV_TOKENS]] = owed.due_s, owed.prompt_tokens, owed.kv_tokens
    leave_room(state, leaves_room, owed.requests, owed.share)


def default_work_limit(candidates: int) -> int:
    """Return the bound on the search for this number of candidates, in prefills scheduled.

    It is about 0.35 ms of search up to 64 candidates. Beyond, it is what it takes to offer nearly everyone a place,
    which grows with the square of their number: 2 ms for 256. It is cut off at 4 ms.
    """
    offers = int(_OFFER_WORK * candidates * candidates)
    return min(MOST_WORK, max(LEAST_WORK, _FIXED_WORK + offers))


def _answer(problem: Problem, packed: Packed, fitted: Sequence[bool], worth: Sequence[bool]) -> Round:
    """Say what becomes of every candidate of a filled plan.

    Args:
        fitted: whether each candidate had a place before headroom was reserved.
        worth: whether it had one before room was left for the tenant that is owed most.
    """
    state = packed.state
    finish_s = np.zeros(state.jobs.shape[0])
    planned_steps = np.zeros((len(packed.workers), PLANNED_COLUMNS))
    reasons = np.zeros((len(problem.candidates), REASON_COLUMNS))
    conclude(state, packed.releases, finish_s, planned_steps, reasons)
    placed = state.placed.tolist()
    first = int(state.settings[SETTING_PROMISED_JOBS])
    ids = [worker.worker_id for worker in packed.workers]
    step_rows = planned_steps.tolist()
    touched = {index for pair in placed for index in pair if index >= 0}
    plans = {index: plan for index in sorted(touched) if (plan := _step_plan(state, index, step_rows[index]))}
    first_tokens_s = finish_s[first : first + len(placed)].tolist()
    decisions = []
    for candidate, (prefiller, decoder), first_token_s, reason, had_place, was_worth_it in zip(
        problem.candidates,
        placed,
        first_tokens_s,
        reasons.tolist(),
        fitted,
        worth,
        strict=True,
    ):
        if prefiller < 0:
            refused = _refused(candidate, reason)
            if had_place:
                refused = _for_others(refused) if was_worth_it else replace(refused, binding=Binding.PRICE)
            decisions.append(refused)
            continue
        plan, tier = plans.get(decoder), candidate.tier
        step_s, drafts = (plan.step_s, plan.draft_tokens[tier]) if plan and tier >= 0 else (None, 0)
        decisions.append(
            Decision(
                candidate.candidate_id,
                Verdict.GUARANTEED,
                ids[prefiller],
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
        work=int(state.spent[0]),
    )


def _step_plan(state: PlanState, worker: int, planned_step: list[float]) -> StepPlan | None:
    """Return how a worker steps, from its PLANNED columns; None if it cannot keep up with its decodes."""
    if planned_step[PLANNED_STEP_S] == math.inf:
        return None
    first_draft = STEP_CELLS + CELL_DRAFT_TOKENS
    drafts = state.step_tables[worker, int(planned_step[PLANNED_STEP_ROW]), first_draft::CELL_COLUMNS].tolist()
    return StepPlan(planned_step[PLANNED_STEP_S], tuple(max(0, int(draft)) for draft in drafts))


def _refused(candidate: Candidate, reason: list[float]) -> Decision:
    """Return the answer to a candidate without a place, from its REASON columns."""
    earliest_s = reason[REASON_EARLIEST_S] if reason[REASON_EARLIEST_S] < math.inf else None
    expected_s = reason[REASON_EXPECTED_S] if reason[REASON_EXPECTED_S] < math.inf else None
    latest_s = reason[REASON_LATEST_S]
    verdict, replan_s = Verdict.NOT_GUARANTEED, None
    if not reason[REASON_POSSIBLE]:
        verdict = Verdict.IMPOSSIBLE
        earliest_s = None
    elif latest_s > _LEAST_REPLAN_S:
        verdict = Verdict.HOLD
        replan_s = min(latest_s, max(reason[REASON_NEXT_EVENT_S], _LEAST_REPLAN_S))
        if replan_s == math.inf:
            replan_s = None
    binding = _BINDINGS[int(reason[REASON_BINDING])]
    name, work = candidate.candidate_id, candidate.work_per_value
    return Decision(name, verdict, "", "", expected_s, None, 0, binding, earliest_s, replan_s, work)


def _for_others(refused: Decision) -> Decision:
    """Return the answer to a candidate that gives way to another tenant: it fits, and may once work is done."""
    earliest_s = max(refused.earliest_s or 0.0, refused.replan_s or _LEAST_REPLAN_S)
    return replace(refused, binding=Binding.FAIR_SHARE, earliest_s=earliest_s)


def _without_workers(candidate: Candidate) -> Decision:
    """Return the answer to a candidate where no worker prefills, or none decodes."""
    name, work = candidate.candidate_id, candidate.work_per_value
    return Decision(name, Verdict.NOT_GUARANTEED, "", "", None, None, 0, Binding.NO_WORKER, None, None, work)
