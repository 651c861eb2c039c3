"""Decode workers that serve several routers hear of planned requests before these are handed over."""

from __future__ import annotations

import pytest

from services.state.journal_entry import RequestState
from slos_serve.v1 import worker_pb2
from tests.unit.router.dispatch.dispatch_bench import DispatchBench, placement
from tests.unit.router.router_support import FACTS, contract


@pytest.fixture
def shared(bench: DispatchBench) -> DispatchBench:
    """`d1` and `d2` serve other routers as well."""
    bench.connect("d2")
    for worker_id in ("d1", "d2"):
        load = worker_pb2.WorkerLoad(kv_blocks_total=FACTS.kv_blocks_total, others=worker_pb2.OtherWork())
        bench.tell(worker_id, worker_pb2.SessionResponse(load=load))
        bench.sent(worker_id)
    return bench


def test_a_guaranteed_request_is_expected_with_its_memory_and_its_rate(shared: DispatchBench) -> None:
    request = shared.accept(shared.request())
    (expect,) = shared.sent("d1")
    assert expect.expect.request_id == "r"
    assert expect.expect.promised_tokens == shared.core.promised_kv_tokens(request) > 100
    assert expect.expect.tpot_s == pytest.approx(0.1)


def test_a_submit_takes_the_place_of_what_was_expected(shared: DispatchBench) -> None:
    request = shared.accept(shared.request())
    shared.sent("d1")
    shared.step("p1", shared.first_output(request))
    assert shared.kinds("d1") == ["submit"]


def test_a_request_that_starts_again_is_expected_again(shared: DispatchBench) -> None:
    request = shared.handed_over(shared.request())
    shared.sent("d1")
    shared.fail("d1", request, worker_pb2.FAILURE_KIND_ENGINE)
    (expect,) = shared.sent("d1")
    assert expect.expect.promised_tokens == shared.core.promised_kv_tokens(request)


def test_a_request_that_ends_before_its_hand_over_is_not_expected_any_more(shared: DispatchBench) -> None:
    shared.accept(shared.request())
    shared.sent("d1")
    shared.dispatcher.cancel("r")
    (expect,) = shared.sent("d1")
    assert (expect.expect.request_id, expect.expect.promised_tokens) == ("r", 0)


def test_a_request_that_is_placed_elsewhere_is_expected_there(shared: DispatchBench) -> None:
    shared.lose("p1")
    request = shared.accept(shared.request())
    assert shared.kinds("d1") == ["expect"]
    shared.planning.answer = placement("p2", "d2")
    shared.dispatcher.pump()
    (gone,), (here,) = shared.sent("d1"), shared.sent("d2")
    assert (gone.expect.promised_tokens, here.expect.promised_tokens) == (0, shared.core.promised_kv_tokens(request))


def test_what_is_not_planned_or_stays_where_it_is_is_not_expected(shared: DispatchBench) -> None:
    shared.accept(shared.request("best effort", wanted=contract(), guaranteed=False))
    assert shared.kinds("d1") == []
    local = shared.accept(shared.request("local", where=placement("d1", "d1")))
    assert local.state is RequestState.PREFILLING
    assert shared.kinds("d1") == ["submit"]


def test_a_worker_that_serves_this_router_alone_is_told_nothing(bench: DispatchBench) -> None:
    bench.accept(bench.request())
    assert bench.kinds("d1") == []
