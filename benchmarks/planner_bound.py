"""An upper bound on what any plan for one prefill worker can be worth, by OR-tools' CP-SAT.

Every constraint is a necessary one: prompts due by a deadline need at least their computing time out of what steps can
leave to prefill until then, decodes at least their cheapest share of it afterwards, and memory adds up. What only makes
things worse (steps cut short, joining, whole tokens) is left out, so no feasible plan is worth more.
"""

from __future__ import annotations

import math
from dataclasses import replace

from benchmarks.planner_reference import Schedule, Step, work_s
from benchmarks.planner_subsets import best_value
from services.slo.planner.kernels.step_table import counted_tokens
from services.slo.planner.problem import Candidate, Problem, Worker
from services.slo.planner.worker_profile import WorkerProfile

_TICK_S = 1e-8
"""Seconds that an integer stands for: the solver knows integers only."""
_VALUE_TICK = 1e-3
"""Value that an integer stands for."""


def upper_bound(problem: Problem, seconds: float = 10.0) -> float | None:
    """Return the bound where the first worker prefills and the last decodes; None if the solver gives up.

    Raises:
        ModuleNotFoundError: OR-tools is not installed.
    """
    from ortools.sat.python import cp_model

    prefill_worker, decoder = problem.workers[0], problem.workers[-1]
    local = prefill_worker is decoder
    profile = prefill_worker.profile
    model = cp_model.CpModel()
    candidates = sorted(problem.candidates, key=lambda candidate: candidate.deadline_s)
    taken = [model.new_bool_var(candidate.candidate_id) for candidate in candidates]
    model.add(
        sum(candidate.kv_tokens * take for candidate, take in zip(candidates, taken, strict=True))
        <= decoder.kv_tokens_free
    )
    shares = [_share(profile, candidate) for candidate in candidates]
    spare = _spare_share(decoder)
    model.add(sum(_floor(share) * take for share, take in zip(shares, taken, strict=True)) <= max(-1, _ceil(spare)))
    works = [work_s(profile, candidate.prompt_tokens) for candidate in candidates]
    schedule = Schedule.of(prefill_worker)
    if schedule is None:
        return 0.0
    start_s, step = schedule.start_s, schedule.step
    for candidate, take in zip(candidates, taken, strict=True):
        if not _alone(problem, candidate):
            model.add(take == 0)
    for index, candidate in enumerate(candidates):
        if math.isinf(candidate.deadline_s):
            break
        capacity = _capacity_s(candidate.deadline_s - start_s, step)
        load = works[: index + 1]
        if local:
            load = [
                work
                + min(shares[j], works[j]) * max(0.0, candidate.deadline_s - candidates[j].deadline_s - step.full_s)
                for j, work in enumerate(load)
            ]
        model.add(sum(_floor(work) * take for work, take in zip(load, taken, strict=False)) <= _ceil(capacity))
    model.maximize(
        sum(round(candidate.value / _VALUE_TICK) * take for candidate, take in zip(candidates, taken, strict=True))
    )
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = seconds
    status = solver.solve(model)
    if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        return None
    return float(solver.best_objective_bound) * _VALUE_TICK


def _floor(seconds: float) -> int:
    """Return seconds in whole ticks, rounded down."""
    return math.floor(seconds / _TICK_S)


def _ceil(seconds: float) -> int:
    """Return seconds in whole ticks, rounded up."""
    return math.ceil(seconds / _TICK_S)


def _gains(profile: WorkerProfile, tier: int) -> list[float]:
    """Return how many times its TPOT a tier's steps may last, for each number of draft tokens."""
    alpha = float(profile.tiers.alphas[tier])
    return [counted_tokens(alpha, drafts) for drafts in range(profile.tiers.drafts + 1)]


def _share(profile: WorkerProfile, candidate: Candidate) -> float:
    """Return the least share of time that a candidate's decode takes, whatever the drafts."""
    if candidate.tier < 0:
        return 0.0
    bound, tpot_s = profile.bound, profile.tiers.tpot_s[candidate.tier]
    context_s = bound.per_context_token_s * candidate.kv_tokens
    return min(
        ((1 + drafts) * bound.per_token_s + bound.per_request_s + context_s) / (tpot_s * gain)
        for drafts, gain in enumerate(_gains(profile, candidate.tier))
    )


def _longest_step(worker: Worker) -> tuple[float, float]:
    """Return the longest step that a worker's decodes allow, and what it costs before any prefill, in seconds."""
    profile, bound = worker.profile, worker.profile.bound
    base_s = bound.overhead_s + bound.per_request_s
    longest = base_s + bound.per_token_s * profile.max_step_tokens
    for tier, count in enumerate(worker.running):
        if count:
            longest = min(longest, profile.tiers.tpot_s[tier] * max(_gains(profile, tier)))
    return longest, base_s


def _spare_share(worker: Worker) -> float:
    """Return the largest share of time that a worker's decodes can leave."""
    profile, bound = worker.profile, worker.profile.bound
    step_s, base_s = _longest_step(worker)
    spare = 1 - base_s / step_s
    for tier, (count, context) in enumerate(zip(worker.running, worker.context_tokens, strict=True)):
        if count:
            spare -= min(
                (count * ((1 + drafts) * bound.per_token_s + bound.per_request_s) + bound.per_context_token_s * context)
                / (profile.tiers.tpot_s[tier] * gain)
                for drafts, gain in enumerate(_gains(profile, tier))
            )
    return spare


def _capacity_s(seconds: float, step: Step) -> float:
    """Return the most seconds of prefill work that fit into this time beside what decodes already."""
    if seconds <= 0:
        return 0.0
    full = math.floor(seconds / step.full_s)
    return full * step.capacity_s + min(step.capacity_s, max(0.0, seconds - full * step.full_s - step.base_s))


def _alone(problem: Problem, candidate: Candidate) -> bool:
    """Return whether the candidate could be promised if it were the only one."""
    return best_value(replace(problem, candidates=(replace(candidate, value=1.0),))) > 0
