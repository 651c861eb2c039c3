"""The verdicts of the planner over workers as admission knows them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.admission import AdmissionOptions, Assessment, Held, Target, Unservable, WorkerLoad
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, PrefillTarget
from services.slo.performance import PerformanceCoefficients
from services.slo.planner import Binding
from tests.unit.services.slo.admission.support import START_S, Desk, contract, prompt_of, worker_facts

LOCAL = AdmissionOptions(local_prefill=True)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def assess_all(desk: Desk, prompts: dict[str, int], wanted: Contract) -> list[Assessment]:
    """Have one round over several requests that want the same."""
    for request_id, tokens in prompts.items():
        desk.core.arrived(desk.arrival(request_id, tokens, wanted))
    return [verdict.answer for verdict in desk.core.decide(START_S).verdicts if isinstance(verdict.answer, Assessment)]


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
        desk.start_decode(desk.admit(f"be{number}", 600, contract()))
    answer = desk.assess("a", 100, contract(1.0, 0.05))
    assert answer.guaranteed
    assert answer.placement.tpot.expected_s <= answer.placement.tpot.bound_s <= 0.05


def test_streams_draft_as_their_worker_was_planned_with() -> None:
    desk = Desk(options=AdmissionOptions(draft_tokens=3, draft_acceptance=0.7))
    never_planned = Desk(options=AdmissionOptions(draft_tokens=3, draft_acceptance=0.7))
    promised = desk.admit("a", 100, contract(1.0, 0.05))
    assert promised.guaranteed
    drafts = desk.core.planned_drafts(promised)
    assert 1 <= drafts <= 3
    assert desk.core.planned_drafts(desk.admit("be", 100, contract())) == 0, "it has no TPOT"
    promised.meter = AttainmentMeter(contract(1.0, 0.04), START_S)
    assert desk.core.planned_drafts(promised) == 0, "no tier is as tight"
    assert never_planned.core.planned_drafts(promised) == 0
    assert Desk().core.planned_drafts(promised) == 0


def test_without_a_contract_nothing_is_promised(desk: Desk) -> None:
    answer = desk.assess("a", 1000, contract())
    assert answer.binding is Binding.NO_CONTRACT
    assert not answer.to_be_refused
    assert answer.placement.due_s == START_S + 30.0


def test_a_cached_prefix_draws_what_is_not_promised_too() -> None:
    """Also where only a sample of the workers is looked at."""
    desk = Desk(worker_ids=(*(f"p{number}" for number in range(50)), "d1"))
    desk.core.prefixes.computed("p37", prompt_of(1000), 16, 1000, believed_tokens=0, cached_tokens=16)
    for number in range(5):
        answer = desk.assess(f"a{number}", 1000, contract())
        assert answer.placement.prefill_worker_id == "p37"
        assert answer.placement.ttft.expected_s < 0.03, "eight tokens are left to compute"


def test_what_is_promised_counts_at_once_and_what_is_not_does_not(desk: Desk) -> None:
    taken = [desk.admit(f"r{index}", 1000, contract(1.0, 0.1) if index % 2 else contract()) for index in range(20)]
    assert 4 <= sum(request.guaranteed for request in taken) <= 9, "about 0.11 s each of 1 s"
    late = desk.assess("late", 1000, contract(1.0, 0.1, refuse=True))
    assert late.binding is Binding.PREFILL_TIME
    assert late.earliest_guarantee_s is not None
    assert late.earliest_guarantee_s > 0
    assert late.to_be_refused


def test_a_request_held_waits_until_there_is_room_on_the_clock(desk: Desk) -> None:
    for index in range(2):
        assert desk.admit(f"b{index}", 2000, contract(0.65)).guaranteed
    told = desk.assess("w", 2000, contract(0.65))
    assert told.binding is Binding.PREFILL_TIME, "a quote holds nobody"
    desk.core.arrived(desk.arrival("w", 2000, contract(0.65)))
    (verdict,) = desk.core.decide(START_S).verdicts
    assert isinstance(verdict.answer, Held)
    assert verdict.answer.binding is Binding.PREFILL_TIME
    assert verdict.answer.earliest_guarantee_s == told.earliest_guarantee_s


def test_one_round_promises_the_worthier_when_not_all_fit(desk: Desk) -> None:
    for index in range(8):
        value = 10.0 if index >= 6 else 1.0
        desk.core.arrived(desk.arrival(f"r{index}", 1900, contract(0.6, value=value)))
    answers = {verdict.request_id: verdict.answer for verdict in desk.core.decide(START_S).verdicts}
    guaranteed = {name for name, answer in answers.items() if isinstance(answer, Assessment) and answer.guaranteed}
    assert {"r6", "r7"} <= guaranteed
    assert len(guaranteed) < 8


def test_a_contract_that_no_idle_worker_could_keep_is_impossible(desk: Desk) -> None:
    slow = desk.assess("a", 1000, contract(0.05, refuse=True))
    assert slow.impossible is not None
    assert (slow.impossible.target, slow.impossible.asked_s) == (Target.TTFT, 0.05)
    assert slow.impossible.idle_s == pytest.approx(0.110, rel=0.01)
    assert slow.binding is Binding.PREFILL_TIME
    tight = desk.assess("b", 10, contract(tpot_s=0.001, refuse=True))
    assert tight.impossible is not None
    assert (tight.impossible.target, tight.binding) == (Target.TPOT, Binding.DECODE_RATE)
    assert not desk.assess("c", 10, contract(tpot_s=0.001)).to_be_refused, "best effort is what it asked for then"


def test_a_slowdown_is_resolved_by_the_quickest_worker() -> None:
    desk = Desk(("d1",))
    desk.core.joined(replace(worker_facts("p1"), prior=PerformanceCoefficients(0.03, 0.0003, 0.0, 0.0, "measured")))
    slow = desk.assess("a", 1000, Contract(PrefillTarget(max_slowdown=3.0))).contract.ttft_s(0.0)
    desk.core.joined(worker_facts("p2"))
    quick = desk.core.assess(
        desk.arrival("b", 1000, Contract(PrefillTarget(max_slowdown=3.0)), START_S + 5.0), START_S + 5.0
    )
    assert isinstance(quick, Assessment)
    assert slow == pytest.approx(3 * 0.33)
    assert quick.contract.ttft_s(0.0) == pytest.approx(3 * 0.11)


def test_memory_binds_and_is_said_to(desk: Desk) -> None:
    for index in range(8):
        request = desk.admit(f"r{index}", 1900, contract(20.0, 1.0))
        if request.guaranteed:
            desk.start_decode(request)
    answer = desk.assess("last", 1900, contract(20.0, 1.0))
    assert answer.binding is Binding.KV_MEMORY
    assert answer.earliest_guarantee_s is not None


def test_without_workers_nobody_is_served() -> None:
    desk = Desk(("p1",))
    assert desk.core.assess(desk.arrival("a", 10, contract(1.0)), START_S) is Unservable.NO_WORKER


def test_a_context_that_fits_no_worker_is_never_served(desk: Desk) -> None:
    assert desk.core.assess(desk.arrival("a", 15_960, contract()), START_S) is Unservable.NEVER_FITS
    assert isinstance(desk.core.assess(desk.arrival("b", 15_950, contract()), START_S), Assessment)


def test_decode_workers_alone_serve_if_they_may_prefill() -> None:
    answer = Desk(("d1", "d2"), LOCAL).assess("a", 1000, contract(1.0, 0.1))
    assert answer.guaranteed
    assert answer.placement.local
    desk = Desk(("d1",))
    assert desk.core.assess(desk.arrival("a", 1000, contract(1.0)), START_S) is Unservable.NO_WORKER


def test_a_task_deadline_brings_the_first_token_forward(desk: Desk) -> None:
    def assess(task_due_s: float | None) -> Assessment:
        arrival = desk.arrival("a", 100, contract(5.0, 0.1))
        answer = desk.core.assess(type(arrival)(arrival.facts, arrival.contract, START_S, task_due_s), START_S)
        assert isinstance(answer, Assessment)
        return answer

    assert assess(None).placement.due_s == START_S + 5.0
    hurried = assess(START_S + 6.0)
    assert hurried.placement.due_s == pytest.approx(START_S + 6.0 - 50 * 0.1), "50 tokens are to come after the first"
    assert not assess(START_S + 4.0).guaranteed


def test_best_effort_of_one_round_does_not_all_go_to_one_worker() -> None:
    desk = Desk(("p1", "p2", "d1", "d2"))
    placements = [answer.placement for answer in assess_all(desk, {f"r{index}": 500 for index in range(8)}, contract())]
    for workers in ("p1", "p2"), ("d1", "d2"):
        given = [[place.prefill_worker_id, place.decode_worker_id].count(workers[0]) for place in placements]
        assert sum(given) == 4, f"four of eight to {workers[0]}"


def test_workers_of_two_groups_never_share_a_request() -> None:
    desk = Desk(())
    for worker_id, group in (("p1", "old"), ("d1", "new"), ("p2", "new")):
        desk.core.joined(worker_facts(worker_id, group))
    placement = desk.assess("a", 100, contract(1.0, 0.1)).placement
    assert (placement.prefill_worker_id, placement.decode_worker_id) == ("p2", "d1")
    assert not desk.core.cluster.usable("p1")


def test_a_busy_worker_delays_the_bound(desk: Desk) -> None:
    idle = desk.assess("a", 1000, contract(5.0)).placement.ttft
    running = desk.admit("r", 2000, contract(9.0))
    desk.start_prefill(running, at_s=START_S - 1.0)
    desk.core.loaded("p1", WorkerLoad(running_requests=1), START_S)
    desk.worker("p1").step_began_s = START_S + 0.01
    behind = desk.assess("b", 1000, contract(5.0)).placement.ttft
    assert behind.bound_s >= idle.bound_s + 0.09, "the step under way takes about 0.1 s"


def test_workers_asked_in_turn_are_asked_alone() -> None:
    desk = Desk(("d1", "d2", "d3"), AdmissionOptions(local_prefill=True, one_worker_in_turn=True))
    answers = assess_all(desk, {f"r{index}": 100 for index in range(6)}, contract(2.0, 0.1))
    assert [answer.placement.prefill_worker_id for answer in answers] == ["d1", "d2", "d3", "d1", "d2", "d3"]
