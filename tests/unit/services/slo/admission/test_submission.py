"""Which prompts go to their worker now, and which wait in the router."""

from __future__ import annotations

import math

import pytest

from services.slo.admission import OtherDecodes, OtherPrompts, OtherWork, Progress, WorkerLoad
from tests.unit.services.slo.admission.support import START_S, Desk, contract


@pytest.fixture
def desk() -> Desk:
    return Desk()


def submitted(desk: Desk, worker_id: str = "p1", now_s: float = START_S) -> list[str]:
    return [submission.request.facts.request_id for submission in desk.core.to_submit(worker_id, now_s)]


def test_best_effort_leaves_the_worker_to_what_is_promised(desk: Desk) -> None:
    desk.start_prefill(desk.admit("be", 2000, contract()))
    desk.admit("be2", 1000, contract())
    assert desk.admit("g", 1000, contract(2.0, 0.1)).guaranteed
    assert submitted(desk) == ["g"]


def test_best_effort_goes_one_step_at_a_time(desk: Desk) -> None:
    for number in range(4):
        desk.admit(f"be{number}", 900, contract())
    assert submitted(desk) == ["be0", "be1"], "two of 900 tokens fill a step of 2,048"


def test_a_cached_beginning_leaves_more_of_the_step(desk: Desk) -> None:
    first = desk.admit("be0", 900, contract())
    desk.core.prefixes.computed("p1", first.facts.blocks, 16, 1000, believed_tokens=0, cached_tokens=16)
    for number in range(1, 4):
        desk.admit(f"be{number}", 900, contract())
    chosen = desk.core.to_submit("p1", START_S)
    assert [submission.believed_cached_tokens for submission in chosen] == [896, 896, 896, 896]


def test_what_may_be_in_time_goes_at_once(desk: Desk) -> None:
    for number in range(14):
        desk.admit(f"g{number}", 1000, contract(1.0, 0.1))
    promised = [name for name, request in desk.taken.items() if request.guaranteed]
    assert 4 <= len(promised) <= 9
    assert len(submitted(desk)) == 14, "each alone could still be in time"
    assert submitted(desk, now_s=START_S + 1.0) == promised, "without a promise none is any more"


def test_ranks_order_what_is_submitted_but_planned_prompts_come_first(desk: Desk) -> None:
    desk.admit("late", 100, contract(9.0))
    desk.admit("soon", 100, contract(3.0))
    unplanned = desk.admit("unplanned", 100, contract(1.0))
    unplanned.planned = unplanned.guaranteed = False
    desk.core.filed(unplanned)
    assert submitted(desk) == ["soon", "late", "unplanned"]


def test_a_full_decode_worker_keeps_prompts_waiting(desk: Desk) -> None:
    for number in range(16):
        desk.start_decode(desk.admit(f"r{number}", 10, contract()))
    desk.admit("waits", 10, contract())
    assert submitted(desk) == [], "sixteen run already"
    desk.core.removed(desk.taken["r0"], complete=True)
    assert submitted(desk) == ["waits"]


def test_prompts_chosen_together_count_where_they_will_decode(desk: Desk) -> None:
    for number in range(14):
        desk.start_decode(desk.admit(f"r{number}", 10, contract()))
    for number in range(5):
        desk.admit(f"w{number}", 10, contract())
    assert submitted(desk) == ["w0", "w1"], "there are two places left"


def test_one_request_goes_even_where_its_forecast_is_longer_than_the_memory(desk: Desk) -> None:
    request = desk.admit("long", 15_950, contract())
    assert submitted(desk) == ["long"]
    desk.start_prefill(request)
    desk.admit("second", 15_950, contract())
    assert submitted(desk) == []


def test_promised_memory_is_not_taken_by_best_effort(desk: Desk) -> None:
    for number in range(3):
        desk.start_decode(desk.admit(f"be{number}", 5000, contract()))
    assert desk.admit("g", 2000, contract(9.0, 0.5)).guaranteed
    desk.admit("be", 2000, contract())
    assert submitted(desk) == ["g"], "its engine takes memory away from best effort"


def test_work_of_other_routers_leaves_less(desk: Desk) -> None:
    desk.admit("be", 1000, contract())
    assert submitted(desk) == ["be"]
    desk.core.loaded("p1", WorkerLoad(), START_S, OtherWork(prompts=(OtherPrompts(math.inf, 1500),)))
    assert submitted(desk) == [], "more than a step's worth"
    desk.core.loaded("p1", WorkerLoad(), START_S, OtherWork())
    desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.5, 4, 15_500),)))
    assert submitted(desk) == [], "no memory is left"


def test_requests_of_other_routers_take_places_where_a_prompt_will_decode(desk: Desk) -> None:
    for number in range(13):
        desk.start_decode(desk.admit(f"r{number}", 10, contract()))
    desk.admit("be", 10, contract())
    desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.5, 3, 30),)))
    assert submitted(desk) == [], "thirteen and three make sixteen"
    desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.5, 2, 30),)))
    assert submitted(desk) == ["be"]


@pytest.mark.parametrize(("too_many_tokens", "goes"), [(0, ["x"]), (1, [])])
def test_memory_may_be_used_to_the_last_token(desk: Desk, too_many_tokens: int, goes: list[str]) -> None:
    request = desk.admit("x", 1000, contract())
    desk.admit("y", 1000, contract())
    left = desk.worker("d1").facts.kv_tokens - desk.core.memory.of_all([request])
    desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.5, 1, left + too_many_tokens),)))
    assert submitted(desk) == goes


def test_a_short_prompt_does_not_overtake_one_that_waits_for_memory(desk: Desk) -> None:
    desk.start_decode(desk.admit("runs", 10_000, contract()))
    desk.admit("large", 8000, contract())
    desk.admit("small", 100, contract())
    assert submitted(desk) == []
    desk.core.removed(desk.taken["runs"], complete=True)
    assert submitted(desk) == ["large"], "a step's worth"


def test_nothing_goes_to_a_worker_that_drains_or_lacks_its_partner(desk: Desk) -> None:
    desk.admit("a", 100, contract(1.0))
    desk.core.drains("p1")
    assert submitted(desk) == []
    other = Desk()
    other.admit("a", 100, contract(1.0))
    other.core.left("d1")
    assert submitted(other) == []


def test_a_prompt_for_an_idle_worker_begins_a_step_there(desk: Desk) -> None:
    desk.start_prefill(desk.admit("a", 100, contract(1.0)), at_s=START_S)
    desk.admit("b", 100, contract(1.0))
    before_s = desk.worker("p1").step_began_s
    assert submitted(desk) == ["b"]
    assert desk.worker("p1").step_began_s == before_s, "it was busy"
    idle = Desk()
    idle.admit("a", 100, contract(1.0))
    assert submitted(idle, now_s=START_S + 0.1) == ["a"]
    assert idle.worker("p1").step_began_s == START_S + 0.1 + idle.options.submission_s
    assert idle.taken["a"].progress is Progress.QUEUED, "the caller submits it"
