"""No plan promises what a step-by-step replay cannot keep."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.planner_instances import Kind, draw
from services.slo.planner import Problem, PromisedPrefill, Round, Worker, plan_round
from tests.unit.services.slo.planner.replay import replay_round

KINDS = [
    replace(
        Kind(pending=pending), tiers=tiers, speculative=speculative, colocated=colocated, equal_values=False, **extra
    )
    for colocated in (False, True)
    for speculative, tiers in ((False, 1), (False, 2), (False, 4), (True, 1), (True, 2))
    for pending, extra in (
        (10, {}),
        (10, {"running": 200}),
        (10, {"roofline": True}),
        (10, {"tight_memory": True}),
        (40, {"overload": 1.0}),
    )
]


def test_every_promise_is_kept_by_a_replay() -> None:
    promises = 0
    for kind in KINDS:
        for seed in range(12):
            problem = draw(kind, seed)
            outcome = plan_round(problem)
            promises += sum(decision.guaranteed for decision in outcome.decisions)
            assert replay_round(problem, outcome) == [], (kind, seed)
    print(f"{len(KINDS) * 12} plans with {promises} promises kept")


def test_four_tiers_with_drafts_are_kept() -> None:
    for seed in range(4):
        problem = draw(Kind(pending=10, tiers=4, speculative=True, colocated=True), seed)
        assert replay_round(problem, plan_round(problem), seconds=0.2) == []


@pytest.mark.parametrize("colocated", [False, True])
def test_promises_of_one_round_survive_the_next(*, colocated: bool) -> None:
    for seed in range(40):
        kind = Kind(pending=8, tiers=2, colocated=colocated, equal_values=False, overload=1.2)
        first = draw(kind, seed)
        promised = promise(first, plan_round(first))
        arriving = tuple(
            replace(candidate, candidate_id=f"new {candidate.candidate_id}")
            for candidate in draw(kind, 1000 + seed).candidates
        )
        second = replace(promised, candidates=arriving)
        assert replay_round(second, plan_round(second)) == [], seed


def promise(problem: Problem, outcome: Round) -> Problem:
    """Return the same moment with the round's promises made."""
    asked = {candidate.candidate_id: candidate for candidate in problem.candidates}
    workers = []
    for worker in problem.workers:
        prefills = list(worker.promised)
        running, context, kv_free = list(worker.running), list(worker.context_tokens), worker.kv_tokens_free
        for decision in outcome.decisions:
            candidate = asked[decision.candidate_id]
            local = decision.prefill_worker_id == decision.decode_worker_id
            if decision.prefill_worker_id == worker.worker_id:
                prefills.append(
                    PromisedPrefill(
                        candidate.deadline_s,
                        candidate.prompt_tokens,
                        decode_tier=candidate.tier if local else -1,
                        kv_tokens=candidate.kv_tokens,
                    )
                )
                kv_free -= candidate.kv_tokens if local else candidate.prompt_tokens
            elif decision.decode_worker_id == worker.worker_id:
                running[candidate.tier] += 1
                context[candidate.tier] += candidate.kv_tokens
                kv_free -= candidate.kv_tokens
        workers.append(with_promises(worker, prefills, running, context, kv_free))
    return replace(problem, workers=tuple(workers))


def with_promises(
    worker: Worker, prefills: list[PromisedPrefill], running: list[int], context: list[int], kv_free: int
) -> Worker:
    return replace(
        worker,
        promised=tuple(prefills),
        running=tuple(running),
        context_tokens=tuple(context),
        kv_tokens_free=kv_free,
    )
