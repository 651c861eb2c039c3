"""Where workers are crowded, what is expensive is promised only if typical newcomers still find room."""

from __future__ import annotations

from services.slo.planner import (
    Candidate,
    Newcomers,
    Problem,
    Profile,
    PromisedPrefill,
    StepBound,
    Tiers,
    Topology,
    Worker,
    plan_round,
)

PROFILE = Profile(StepBound(0.01, 1e-3), Tiers((0.1,)), 512, 0.1)
TYPICAL = Candidate("typical", 100, 150, 0.4, 0)


def guaranteed(candidates: list[Candidate], booked: int, newcomer: Candidate | None) -> list[str]:
    promised = (PromisedPrefill(2.0, booked),) if booked else ()
    workers = (Worker("w", PROFILE, True, True, 100_000, 100_000, promised=promised),)
    outcome = plan_round(Problem(workers, Topology.of(workers), tuple(candidates), newcomer=newcomer))
    return [decision.candidate_id for decision in outcome.decisions if decision.guaranteed]


def test_an_idle_worker_promises_what_is_expensive() -> None:
    assert guaranteed([Candidate("long", 800, 900, 2.0, 0)], 0, TYPICAL) == ["long"]


def test_a_crowded_worker_keeps_its_room_for_newcomers() -> None:
    long, short = Candidate("long", 400, 500, 2.0, 0), Candidate("short", 50, 60, 2.0, 0)
    assert guaranteed([long], 1300, None) == ["long"], "there is room"
    assert guaranteed([long], 1300, TYPICAL) == []
    assert guaranteed([short], 1300, TYPICAL) == ["short"], "cheaper than a typical one"
    worth = Candidate("worth", 400, 500, 2.0, 0, value=10.0)
    assert guaranteed([worth], 1300, TYPICAL) == ["worth"], "cheap for its value"


def test_the_typical_newcomer_is_the_median_of_the_latest() -> None:
    newcomers = Newcomers[Candidate](lambda candidate: candidate.prompt_tokens)
    assert newcomers.typical() is None
    for index in range(300):
        newcomers.note(Candidate(str(index), 100 if index < 20 else 1000 + index % 3, 5000))
    typical = newcomers.typical()
    assert typical is not None
    assert typical.prompt_tokens == 1001
