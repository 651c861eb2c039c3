"""Where workers are crowded, what costs much is promised only if typical arrivals still fit beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.slo.planner import (
    Binding,
    Candidate,
    Decision,
    Problem,
    PromisedPrefill,
    ReservedHeadroom,
    StepBound,
    Tiers,
    Topology,
    Worker,
    WorkerProfile,
    plan_round,
)

PROFILE = WorkerProfile(StepBound(0.01, 1e-3), Tiers((0.1,)), 512, 0.1)
WORKER = Worker("w", PROFILE, True, True, 100_000, 100_000)
TYPICAL = Candidate("typical", 100, 150, 0.4, 0)
ONE = ReservedHeadroom(1.0, 0.0)


def decided(
    candidates: list[Candidate], booked: int, typical: Candidate | None, headroom: ReservedHeadroom = ONE
) -> Sequence[Decision]:
    """Return the answers on a worker that has promised so many tokens of a prompt, due in 2 s."""
    promised = (PromisedPrefill(2.0, booked),) if booked else ()
    workers = (replace(WORKER, promised=promised),)
    problem = Problem(
        workers,
        Topology.of(workers),
        tuple(candidates),
        typical_arrival=typical,
        headroom_requests=headroom.requests,
        cost_threshold=headroom.cost_threshold,
    )
    return plan_round(problem).decisions


def guaranteed(candidates: list[Candidate], booked: int, typical: Candidate | None) -> list[str]:
    return [decision.candidate_id for decision in decided(candidates, booked, typical) if decision.guaranteed]


def test_an_idle_worker_promises_what_costs_much() -> None:
    assert guaranteed([Candidate("long", 800, 900, 2.0, 0)], 0, TYPICAL) == ["long"]


def test_a_crowded_worker_keeps_headroom_for_typical_arrivals() -> None:
    long, short = Candidate("long", 400, 500, 2.0, 0), Candidate("short", 50, 60, 2.0, 0)
    assert guaranteed([long], 1300, None) == ["long"], "it fits"
    assert guaranteed([long], 1300, TYPICAL) == []
    assert guaranteed([short], 1300, TYPICAL) == ["short"], "cheaper than a typical one"
    worth = Candidate("worth", 400, 500, 2.0, 0, value=10.0)
    assert guaranteed([worth], 1300, TYPICAL) == ["worth"], "cheap for its value"


def test_who_is_above_the_threshold_leaves_headroom_or_is_told_so() -> None:
    typical = Candidate("typical", 50, 60, 0.5, 0)
    long, short = Candidate("long", 400, 500, 2.0, 0), Candidate("short", 50, 60, 2.0, 0)
    worth = Candidate("worth", 400, 500, 2.0, 0, value=10.0)
    known = Candidate("known", 400, 500, 2.0, 0, cached=(("w", 384),))

    def one(candidate: Candidate, booked: int, cost_threshold: float) -> Decision:
        return decided([candidate], booked, typical, ReservedHeadroom(4.0, cost_threshold))[0]

    assert one(long, 1380, cost_threshold=400.0).guaranteed, "it is not above the threshold"
    refused = one(long, 1380, cost_threshold=100.0)
    assert not refused.guaranteed
    assert refused.binding is Binding.PRICE
    assert refused.work_per_value == 400.0
    assert one(long, 0, cost_threshold=100.0).guaranteed, "both fit"
    for candidate in (short, worth, known):
        assert one(candidate, 1380, cost_threshold=100.0).guaranteed
    full = one(long, 1900, cost_threshold=100.0)
    assert not full.guaranteed
    assert full.binding is Binding.PREFILL_TIME, "it would not fit at any cost"


def test_headroom_is_for_as_many_as_are_asked_for() -> None:
    typical = Candidate("typical", 50, 60, 0.5, 0)
    long = Candidate("long", 400, 500, 2.0, 0)
    fits = [decided([long], 1200, typical, ReservedHeadroom(float(count), 0.0))[0].guaranteed for count in (1, 2, 3, 4)]
    assert fits == [True, True, True, False]


def test_the_costliest_leaves_headroom_first() -> None:
    costly, other = Candidate("costly", 400, 500, 2.0, 0), Candidate("other", 300, 400, 2.0, 0, value=1.0)
    assert guaranteed([costly, other], 1000, TYPICAL) == ["other"]
    assert guaranteed([replace(costly, value=4.0), other], 1000, TYPICAL) == ["costly"]


def test_a_typical_arrival_that_decodes_where_it_is_computed_must_be_kept_up_with() -> None:
    """Reading its context of 2,000 tokens would take longer than a step may last."""
    reading = WorkerProfile(StepBound(0.01, 1e-3, per_context_token_s=1e-4), Tiers((0.1,)), 512, 0.1)
    workers = (replace(WORKER, profile=reading),)
    long = Candidate("long", 50, 60, 9.0, -1)
    for tier, fits in ((0, False), (-1, True)):
        typical = Candidate("typical", 10, 2000, 9.0, tier)
        problem = Problem(workers, Topology.of(workers), (long,), typical_arrival=typical)
        assert plan_round(problem).decisions[0].guaranteed == fits
