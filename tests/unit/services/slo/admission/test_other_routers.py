"""Several routers on the same workers: what one has promised is missing in what the other promises."""

from __future__ import annotations

import pytest

from services.slo.admission import NO_OTHERS, OtherDecodes, OtherPrompts, OtherWork, WorkerLoad
from services.slo.planner import Binding
from tests.unit.services.slo.admission.support import START_S, Desk, contract


@pytest.fixture
def desk() -> Desk:
    return Desk()


def tell(desk: Desk, worker_id: str, others: OtherWork, now_s: float = START_S) -> None:
    desk.core.loaded(worker_id, WorkerLoad(), now_s, others)


def test_prompts_of_others_that_are_due_earlier_leave_no_time(desk: Desk) -> None:
    wanted = contract(1.0, 0.1, refuse=True)
    assert desk.assess("a", 1000, wanted).guaranteed
    tell(desk, "p1", OtherWork(prompts=(OtherPrompts(0.5, 8000),)))
    taken = desk.assess("b", 1000, wanted)
    assert taken.binding is Binding.PREFILL_TIME
    assert taken.placement.ttft.expected_s > 0.8, "the forecast sees them as well"
    tell(desk, "p1", OtherWork())
    assert desk.assess("c", 1000, wanted).guaranteed


def test_due_times_of_others_count_from_when_they_were_told(desk: Desk) -> None:
    tell(desk, "p1", OtherWork(prompts=(OtherPrompts(2.0, 4000),)))
    early = desk.assess("a", 2000, contract(0.7, 0.1))
    assert early.guaranteed, "theirs are due later than ours"
    late = desk.assess("b", 2000, contract(0.7, 0.1), START_S + 1.35)
    assert not late.guaranteed, "theirs, of half a second, are due in 0.65 s by now"


def test_decodes_of_others_take_their_rate(desk: Desk) -> None:
    wanted = contract(1.0, 0.1)
    assert desk.assess("a", 100, wanted).guaranteed
    tell(desk, "d1", OtherWork((OtherDecodes(0.0112, 12, 1500),)))  # A step with one more would take 11.3 ms.
    assert desk.assess("b", 100, wanted).binding is Binding.DECODE_RATE


def test_decodes_of_others_take_their_memory_and_their_slots(desk: Desk) -> None:
    wanted = contract(1.0, 0.5)
    tell(desk, "d1", OtherWork((OtherDecodes(None, 1, 15_980),)))
    assert desk.assess("a", 100, wanted).binding is Binding.KV_MEMORY
    tell(desk, "d1", OtherWork((OtherDecodes(0.5, 16, 1600),)))
    assert not desk.assess("b", 100, wanted).guaranteed, "sixteen run already"


def test_decodes_that_somebody_expects_of_a_worker_that_does_not_decode_change_nothing(desk: Desk) -> None:
    tell(desk, "p1", OtherWork((OtherDecodes(0.0001, 5, 500),)))
    assert desk.assess("a", 100, contract(1.0, 0.1)).guaranteed


def test_a_router_that_is_alone_again_plans_with_everything(desk: Desk) -> None:
    tell(desk, "p1", OtherWork(prompts=(OtherPrompts(0.5, 8000),)))
    tell(desk, "p1", NO_OTHERS, START_S + 1.0)
    assert desk.assess("a", 1000, contract(2.0, 0.1), START_S + 1.0).guaranteed
