"""Several routers on the same workers: what one has promised is missing in what the other promises."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from router.dispatch.capacity import decode_room, prefill_room
from services.slo.planner import Binding
from services.wire import NO_OTHERS, OtherDecodes, OtherPrompts, OtherWork, others_to_wire
from slos_serve.v1 import worker_pb2
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import Desk, contract


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def desk(model_dir: Path) -> Desk:
    return Desk(model_dir)


def tell(desk: Desk, worker_id: str, others: OtherWork, now_s: float = 0.0) -> None:
    """The worker reports, as one does that other routers use as well."""
    view = desk.admission.cluster.workers[worker_id]
    view.heard(worker_pb2.WorkerLoad(kv_blocks_total=1000, others=others_to_wire(others)), now_s)


def test_prompts_of_others_that_are_due_earlier_leave_no_time(desk: Desk) -> None:
    wanted = contract(1.0, 0.1, refuse=True)
    assert desk.assess("a", 1000, wanted).guaranteed
    tell(desk, "p1", OtherWork(prompts=(OtherPrompts(0.5, 8000),)))
    taken = desk.assess("b", 1000, wanted)
    assert taken.binding is Binding.PREFILL_TIME
    assert taken.placement.ttft.expected_s > 0.8, "the forecast sees them as well"
    tell(desk, "p1", OtherWork())
    assert desk.assess("c", 1000, wanted).guaranteed


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


def test_what_is_handed_to_workers_leaves_room_to_what_others_were_promised(desk: Desk) -> None:
    lane, there = desk.admission.cluster.workers["p1"], desk.admission.cluster.workers["d1"]
    plain = desk.take(desk.arrival("be", 1000, contract()), desk.assess("be", 1000, contract()))
    assert prefill_room(lane, desk.requests, plain, 0.0)
    assert decode_room(there, desk.requests, desk.admission.view.holdings, plain)
    tell(desk, "p1", OtherWork(prompts=(OtherPrompts(math.inf, 1500),)))
    tell(desk, "d1", OtherWork((OtherDecodes(0.5, 4, 15_500),)))
    assert not prefill_room(lane, desk.requests, plain, 0.0), "more than a step's worth"
    assert not decode_room(there, desk.requests, desk.admission.view.holdings, plain)


def test_a_router_that_is_alone_again_plans_with_everything(desk: Desk) -> None:
    tell(desk, "p1", OtherWork(prompts=(OtherPrompts(0.5, 8000),)))
    view = desk.admission.cluster.workers["p1"]
    assert view.shared
    view.heard(worker_pb2.WorkerLoad(kv_blocks_total=1000), 1.0)
    assert not view.shared
    assert view.others == NO_OTHERS
    assert desk.assess("a", 1000, contract(2.0, 0.1), now_s=1.0).guaranteed


def test_what_is_kept_up_is_what_a_count_of_everything_would_find(desk: Desk) -> None:
    book, requests = desk.admission.view.holdings, desk.requests
    taken = []
    for index in range(40):
        wanted = contract(5.0, 0.1) if index % 3 else contract()
        live = desk.take(desk.arrival(f"r{index}", 50 + index, wanted), desk.assess(f"r{index}", 50 + index, wanted))
        taken.append(live)
        if index % 2:
            desk.start_decode(live)
            live.generated += range(index)
            requests.grew(live, index)
            requests.changed(live)
        if index % 5 == 4:
            requests.remove(taken.pop(0))
        known = book.of("d1")
        there = requests.decoding("d1")
        assert len(known.everyone) == len(there)
        assert known.everyone.kv_tokens() == pytest.approx(book.memory.of_all(there), abs=1)
        planned = [request for request in there if request.planned]
        assert len(known.planned) == len(planned)
        assert known.planned.kv_tokens() == pytest.approx(book.memory.of_all(planned), abs=1)
        assert requests.decoding_tokens("d1") == sum(request.context_tokens for request in there)


def test_a_request_that_moves_is_counted_where_it_is_now(model_dir: Path) -> None:
    desk = Desk(model_dir, ("p1", "d1", "d2"))
    live = desk.take(desk.arrival("a", 100, contract(1.0, 0.1)), desk.assess("a", 100, contract(1.0, 0.1)))
    old, new = live.decode_worker_id, {"d1": "d2", "d2": "d1"}[live.decode_worker_id]
    book = desk.admission.view.holdings
    assert len(book.of(old).planned) == 1
    live.move(replace(live.placement, decode_worker_id=new))
    desk.requests.file(live)
    assert (len(book.of(old).planned), len(book.of(new).planned)) == (0, 1)
