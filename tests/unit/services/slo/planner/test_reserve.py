"""Where workers are crowded, what is expensive is promised only if typical newcomers still find room."""

from __future__ import annotations

from collections.abc import Sequence

from services.slo.planner import (
    ArrivalSample,
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
TYPICAL = Candidate("typical", 100, 150, 0.4, 0)
ONE = ReservedHeadroom(1.0, 0.0)


def decided(
    candidates: list[Candidate], booked: int, newcomer: Candidate | None, room: ReservedHeadroom = ONE
) -> Sequence[Decision]:
    """On a worker that has promised so many tokens of a prompt, due in 2 s."""
    promised = (PromisedPrefill(2.0, booked),) if booked else ()
    workers = (Worker("w", PROFILE, True, True, 100_000, 100_000, promised=promised),)
    problem = Problem(
        workers,
        Topology.of(workers),
        tuple(candidates),
        typical_arrival=newcomer,
        headroom_requests=room.requests,
        cost_threshold=room.cost_threshold,
    )
    return plan_round(problem).decisions


def guaranteed(candidates: list[Candidate], booked: int, newcomer: Candidate | None) -> list[str]:
    return [decision.candidate_id for decision in decided(candidates, booked, newcomer) if decision.guaranteed]


def test_an_idle_worker_promises_what_is_expensive() -> None:
    assert guaranteed([Candidate("long", 800, 900, 2.0, 0)], 0, TYPICAL) == ["long"]


def test_a_crowded_worker_keeps_its_room_for_newcomers() -> None:
    long, short = Candidate("long", 400, 500, 2.0, 0), Candidate("short", 50, 60, 2.0, 0)
    assert guaranteed([long], 1300, None) == ["long"], "there is room"
    assert guaranteed([long], 1300, TYPICAL) == []
    assert guaranteed([short], 1300, TYPICAL) == ["short"], "cheaper than a typical one"
    worth = Candidate("worth", 400, 500, 2.0, 0, value=10.0)
    assert guaranteed([worth], 1300, TYPICAL) == ["worth"], "cheap for its value"


def test_at_a_price_who_is_dearer_leaves_room_or_is_told_so() -> None:
    newcomer = Candidate("typical", 50, 60, 0.5, 0)
    long, short = Candidate("long", 400, 500, 2.0, 0), Candidate("short", 50, 60, 2.0, 0)
    worth = Candidate("worth", 400, 500, 2.0, 0, value=10.0)
    known = Candidate("known", 400, 500, 2.0, 0, cached=(("w", 384),))

    def one(candidate: Candidate, booked: int, dearest: float) -> Decision:
        return decided([candidate], booked, newcomer, ReservedHeadroom(4.0, dearest))[0]

    assert one(long, 1380, dearest=400.0).guaranteed, "it is worth its price"
    priced_out = one(long, 1380, dearest=100.0)
    assert not priced_out.guaranteed
    assert priced_out.binding is Binding.PRICE
    assert priced_out.work_per_value == 400.0
    assert one(long, 0, dearest=100.0).guaranteed, "there is room for both"
    for candidate in (short, worth, known):
        assert one(candidate, 1380, dearest=100.0).guaranteed
    full = one(long, 1900, dearest=100.0)
    assert not full.guaranteed
    assert full.binding is Binding.PREFILL_TIME, "there is no room at any price"


def test_the_typical_newcomer_is_the_median_of_the_latest() -> None:
    newcomers = ArrivalSample[Candidate](lambda candidate: candidate.prompt_tokens)
    assert newcomers.typical() is None
    for index in range(300):
        newcomers.note(Candidate(str(index), 100 if index < 20 else 1000 + index % 3, 5000))
    typical = newcomers.typical()
    assert typical is not None
    assert typical.prompt_tokens == 1001
