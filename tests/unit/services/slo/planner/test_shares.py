"""Who has had most for its weight is promised only what leaves room for the tenant that is owed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.slo.planner import (
    Binding,
    Candidate,
    Decision,
    OwedArrival,
    Problem,
    PromisedPrefill,
    Standing,
    StepBound,
    Tiers,
    Topology,
    Worker,
    WorkerProfile,
    plan_round,
)

PROFILE = WorkerProfile(StepBound(0.01, 1e-3), Tiers((0.1,)), 512, 0.1)
WORKER = Worker("w", PROFILE, True, True, 100_000, 100_000)
OWED = OwedArrival(100, 150, 0.4, 0.5)
FRONT = Standing(leaves_room=True)
BEHIND = Standing(priority=16.0)


def decided(
    candidates: Sequence[Candidate], booked: int, owed: OwedArrival | None, worker: Worker = WORKER
) -> Sequence[Decision]:
    """Return the answers on a worker that has promised so many tokens of a prompt, due in 2 s."""
    promised = (PromisedPrefill(2.0, booked),) if booked else ()
    workers = (replace(worker, promised=promised),)
    return plan_round(Problem(workers, Topology.of(workers), tuple(candidates), owed_arrival=owed)).decisions


def guaranteed(candidates: Sequence[Candidate], booked: int, owed: OwedArrival | None) -> list[str]:
    return [decision.candidate_id for decision in decided(candidates, booked, owed) if decision.guaranteed]


def request(name: str, tokens: int, standing: Standing, due_s: float = 2.0) -> Candidate:
    return Candidate(name, tokens, tokens + 50, due_s, 0, standing=standing)


def test_room_is_left_by_those_who_have_to() -> None:
    assert guaranteed([request("front", 100, FRONT)], 1600, None) == ["front"], "nobody is owed anything"
    (turned_away,) = decided([request("front", 100, FRONT)], 1600, OWED)
    assert (turned_away.guaranteed, turned_away.binding) == (False, Binding.FAIR_SHARE)
    assert guaranteed([request("behind", 100, BEHIND)], 1600, OWED) == ["behind"]
    assert guaranteed([request("front", 100, FRONT)], 1000, OWED) == ["front"], "there is room for both"


def test_who_does_not_fit_anyway_is_told_what_it_lacks() -> None:
    (late,) = decided([request("front", 400, FRONT)], 1600, OWED)
    assert late.binding is Binding.PREFILL_TIME


def test_the_one_that_is_owed_goes_first_in_a_round() -> None:
    both = [request("front", 90, Standing()), request("behind", 100, BEHIND)]
    assert guaranteed(both, 1600, None) == ["behind"]
    even = [replace(candidate, standing=Standing()) for candidate in both]
    assert guaranteed(even, 1600, None) == ["front"], "the smaller one"


@pytest.mark.parametrize("owed", [replace(OWED, prompt_tokens=1e7, kv_tokens=2e7), replace(OWED, due_s=0.0)])
def test_no_arrival_however_large_or_urgent_keeps_others_out_of_a_worker_that_has_its_share_free(
    owed: OwedArrival,
) -> None:
    assert guaranteed([request("front", 100, FRONT)], 0, owed) == ["front"], "the worker does nothing else"
    assert guaranteed([request("front", 100, FRONT)], 400, owed) == ["front"], "half of its time is free"


def test_memory_is_left_as_well() -> None:
    full = replace(WORKER, kv_tokens_free=400)
    candidate = request("front", 100, FRONT)
    assert decided([candidate], 0, replace(OWED, kv_tokens=250.0), full)[0].guaranteed
    (refused,) = decided([candidate], 0, replace(OWED, kv_tokens=251.0), full)
    assert (refused.guaranteed, refused.binding) == (False, Binding.FAIR_SHARE)
    huge = replace(OWED, prompt_tokens=100.0, kv_tokens=1e9)
    assert decided([candidate], 0, huge, replace(WORKER, kv_tokens_free=50_150))[0].guaranteed, "its share is free"


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"requests": 0.0}, {"kv_tokens": 50.0}])
def test_an_owed_arrival_is_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"share|context"):
        replace(OWED, **wrong)


def test_the_owed_arrival_may_be_as_short_as_a_token() -> None:
    assert OwedArrival(1, 1, 0.0, 0.5).prompt_tokens == 1
    for tokens, kv_tokens in ((0.5, 10), (10, 9)):
        with pytest.raises(ValueError, match="finite"):
            OwedArrival(tokens, kv_tokens, 0.0, 0.5)
