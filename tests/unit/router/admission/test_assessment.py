"""The planner's verdicts over the router's view of the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from router.admission.assessment import Assessment

from router.dispatch.capacity import decode_room, prefill_room
from services.engine.protocol import EngineLoad
from services.rpc.errors import ImpossibleContractError, NoWorkerError, OverloadedError
from services.slo.planner import Binding
from services.state.journal_entry import RequestState
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import Desk, contract


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def desk(model_dir: Path) -> Desk:
    return Desk(model_dir)


def test_an_idle_cluster_guarantees(desk: Desk) -> None:
    answer = desk.assess("a", 1000, contract(1.0, 0.1))
    assert answer.guaranteed
    assert answer.placement.prefill_worker_id == "p1"
    assert answer.placement.decode_worker_id == "d1"
    assert 0.110 <= answer.placement.ttft.expected_s <= answer.placement.ttft.bound_s <= 1.0
    assert answer.placement.tpot.bound_s <= 0.1


def test_what_is_promised_is_not_said_to_be_broken(desk: Desk) -> None:
    """However much best effort is there: its engine holds it back."""
    for number in range(12):
        live = desk.take(desk.arrival(f"be{number}", 600, contract()), desk.assess(f"be{number}", 600, contract()))
        desk.start_decode(live)
    answer = desk.assess("a", 100, contract(1.0, 0.05))
    assert answer.guaranteed
    assert answer.placement.tpot.expected_s <= answer.placement.tpot.bound_s <= 0.05


def test_without_a_contract_nothing_is_promised(desk: Desk) -> None:
    answer = desk.assess("a", 1000, contract())
    assert answer.binding is Binding.NO_CONTRACT
    assert answer.refused is None
    assert answer.placement.due_s == 30.0


def test_a_cached_prefix_draws_what_is_not_promised_too(model_dir: Path) -> None:
    """Also where only a sample of the workers is looked at."""
    desk = Desk(model_dir, worker_ids=(*(f"p{number}" for number in range(50)), "d1"))
    prompt = desk.arrival("a", 1000, contract()).parsed.prompt
    desk.admission.view.prefixes.computed("p37", prompt, 16, 1000, believed=0, cached=16)
    for number in range(5):
        answer = desk.assess(f"a{number}", 1000, contract())
        assert answer.placement.prefill_worker_id == "p37"
        assert answer.placement.ttft.expected_s < 0.03, "eight tokens are left to compute"


def test_what_is_promised_counts_at_once_and_what_is_not_does_not(desk: Desk) -> None:
    for index in range(20):
        wanted = contract(1.0, 0.1) if index % 2 else contract()
        arrival = desk.arrival(f"r{index}", 1000, wanted)
        desk.take(arrival, desk.assess(f"r{index}", 1000, wanted))
    guaranteed = [request for request in desk.requests if request.guaranteed]
    assert 4 <= len(guaranteed) <= 9, "about 0.11 s each of 1 s"
    late = desk.assess("late", 1000, contract(1.0, 0.1, refuse=True))
    assert late.binding is Binding.PREFILL_TIME
    assert late.earliest_guarantee_s is not None
    assert late.earliest_guarantee_s > 0
    refusal = late.refused
    assert isinstance(refusal, OverloadedError)
    assert refusal.retry_after_s is not None
    earliest_s = max(0.05, late.earliest_guarantee_s)
    assert earliest_s <= refusal.retry_after_s <= 1.2 * earliest_s


def test_one_round_promises_the_worthier_when_not_all_fit(desk: Desk) -> None:
    arrivals = [desk.arrival(f"r{index}", 1900, contract(0.5, value=10.0 if index >= 6 else 1.0)) for index in range(8)]
    answers = desk.admission.assess(arrivals, 0.0)
    guaranteed = [isinstance(answer, Assessment) and answer.guaranteed for answer in answers]
    assert guaranteed[6]
    assert guaranteed[7]
    assert not all(guaranteed)


def test_a_contract_that_no_idle_worker_could_keep_is_impossible(desk: Desk) -> None:
    slow = desk.assess("a", 1000, contract(0.05, refuse=True))
    assert isinstance(slow.refused, ImpossibleContractError)
    assert slow.refused.field == "contract.stages[0].prefill"
    assert isinstance(desk.assess("b", 10, contract(tpot_s=0.001, refuse=True)).refused, ImpossibleContractError)
    assert desk.assess("c", 10, contract(tpot_s=0.001)).refused is None, "best effort is what it asked for then"


def test_memory_binds_and_is_said_to(desk: Desk) -> None:
    for index in range(8):
        wanted = contract(20.0, 1.0)
        arrival = desk.arrival(f"r{index}", 1900, wanted)
        live = desk.take(arrival, desk.assess(f"r{index}", 1900, wanted))
        if live.guaranteed:
            desk.start_decode(live)
    answer = desk.assess("last", 1900, contract(20.0, 1.0))
    assert answer.binding is Binding.KV_MEMORY
    assert answer.earliest_guarantee_s is not None


def test_without_workers(model_dir: Path) -> None:
    (answer,) = Desk(model_dir, ("p1",)).admission.assess([Desk(model_dir).arrival("a", 10, contract(1.0))], 0.0)
    assert isinstance(answer, NoWorkerError)


def test_decode_workers_alone_serve_if_they_may_prefill(model_dir: Path) -> None:
    answer = Desk(model_dir, ("d1", "d2"), local_prefill=True).assess("a", 1000, contract(1.0, 0.1))
    assert answer.guaranteed
    assert answer.placement.prefill_worker_id == answer.placement.decode_worker_id
    desk = Desk(model_dir, ("d1",))
    (refused,) = desk.admission.assess([desk.arrival("a", 1000, contract(1.0))], 0.0)
    assert isinstance(refused, NoWorkerError)
    assert desk.admission.cluster.missing() == "no prefill worker is connected"
    assert Desk(model_dir, ("p1",), local_prefill=True).admission.cluster.missing() == "no decode worker is connected"


def test_a_task_deadline_brings_the_first_token_forward(desk: Desk) -> None:
    arrival = desk.arrival("a", 100, contract(5.0, 0.1))
    plain = desk.admission.assess([arrival], 0.0)[0]
    hurried = desk.admission.assess([type(arrival)(arrival.parsed, arrival.contract, 0.0, task_due_s=6.0)], 0.0)[0]
    assert isinstance(plain, Assessment)
    assert isinstance(hurried, Assessment)
    assert plain.placement.due_s == 5.0
    assert hurried.placement.due_s == pytest.approx(6.0 - 50 * 0.1), "50 tokens are still to come after the first"
    hopeless = desk.admission.assess([type(arrival)(arrival.parsed, arrival.contract, 0.0, task_due_s=4.0)], 0.0)[0]
    assert isinstance(hopeless, Assessment)
    assert not hopeless.guaranteed


def test_best_effort_of_one_round_does_not_all_go_to_one_worker(model_dir: Path) -> None:
    desk = Desk(model_dir, ("p1", "p2", "d1", "d2"))
    answers = desk.admission.assess([desk.arrival(f"r{index}", 500, contract()) for index in range(8)], 0.0)
    placements = [answer.placement for answer in answers if isinstance(answer, Assessment)]
    for workers in ("p1", "p2"), ("d1", "d2"):
        given = [[place.prefill_worker_id, place.decode_worker_id].count(workers[0]) for place in placements]
        assert sum(given) == 4, f"four of eight to {workers[0]}"


class TestRoom:
    def test_best_effort_leaves_room_to_what_is_promised(self, desk: Desk) -> None:
        lane, there = desk.admission.cluster.workers["p1"], desk.admission.cluster.workers["d1"]
        plain = desk.arrival("be", 2000, contract())
        first = desk.take(plain, desk.assess("be", 2000, contract()))
        first.state, first.prefill_worker_id = RequestState.PREFILLING, "p1"
        desk.requests.file(first)
        other = desk.take(desk.arrival("be2", 1000, contract()), desk.assess("be2", 1000, contract()))
        wanted = contract(2.0, 0.1)
        promised = desk.take(desk.arrival("g", 1000, wanted), desk.assess("g", 1000, wanted))
        assert promised.guaranteed
        assert not prefill_room(lane, desk.requests, other, 0.0)
        assert prefill_room(lane, desk.requests, promised, 0.0)
        assert decode_room(there, desk.requests, desk.admission.view.holdings, promised)

    def test_a_busy_worker_delays_the_bound(self, desk: Desk) -> None:
        idle = desk.assess("a", 1000, contract(5.0)).placement.ttft
        wanted = contract(9.0)
        running = desk.take(desk.arrival("r", 2000, wanted), desk.assess("r", 2000, wanted))
        running.state, running.prefill_worker_id = RequestState.PREFILLING, "p1"
        desk.requests.file(running)
        lane = desk.admission.cluster.workers["p1"]
        lane.load = EngineLoad(1, 0, 1000, 125, 0)
        lane.step_began_s = 0.01
        behind = desk.assess("b", 1000, contract(5.0)).placement.ttft
        assert behind.bound_s >= idle.bound_s + 0.2, "the step under way takes 0.21 s"
