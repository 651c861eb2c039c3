"""Rounds of the core: who is held and for how long, what makes a cost threshold, and who has outwaited its patience."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.admission import AdmissionOptions, AdmissionRound, Outcome, Progress, Unservable, WorkerLoad
from services.slo.performance import StepShape
from services.slo.planner import Binding
from tests.unit.services.slo.admission.support import START_S, Desk, Tracked, contract

HELD_TTFT_S = 0.65
"""Two prompts of 2,000 tokens are in time for it, a third one is not."""


@pytest.fixture
def desk() -> Desk:
    return Desk()


def fill(desk: Desk, now_s: float = START_S) -> None:
    for index in range(2):
        assert desk.admit(f"b{index}", 2000, contract(HELD_TTFT_S), now_s).guaranteed


def decide(desk: Desk, now_s: float, **arrivals: tuple[int, float | None]) -> AdmissionRound:
    """Have a round over requests that have just come: prompt tokens and TTFT of each."""
    for request_id, (tokens, ttft_s) in arrivals.items():
        desk.core.arrived(desk.arrival(request_id, tokens, contract(ttft_s), now_s))
    return desk.core.decide(now_s)


def outcomes(decided: AdmissionRound) -> dict[str, Outcome]:
    return {verdict.request_id: verdict.outcome for verdict in decided.verdicts}


class TestHolding:
    def test_who_finds_room_soon_is_held_and_then_guaranteed(self, desk: Desk) -> None:
        fill(desk)
        held = decide(desk, START_S, w=(2000, HELD_TTFT_S))
        assert outcomes(held) == {"w": Outcome.HELD}
        assert desk.core.pending == 1
        assert START_S < held.replan_at_s < START_S + HELD_TTFT_S
        desk.core.removed(desk.taken["b0"], complete=True)
        assert outcomes(desk.core.decide(START_S + 0.01)) == {"w": Outcome.GUARANTEED}
        assert desk.core.pending == 0

    def test_nobody_is_held_for_longer_than_the_limit_after_its_arrival(self) -> None:
        desk = Desk(options=AdmissionOptions(max_hold_s=0.3))
        fill(desk)
        assert outcomes(decide(desk, START_S, w=(2000, HELD_TTFT_S))) == {"w": Outcome.HELD}
        late = desk.core.decide(START_S + 0.299)
        assert outcomes(late) == {"w": Outcome.BEST_EFFORT}, "its room would come after the limit"

    def test_without_holding_the_answer_comes_at_once(self) -> None:
        desk = Desk(options=AdmissionOptions(max_hold_s=0.0))
        fill(desk)
        assert outcomes(decide(desk, START_S, w=(2000, HELD_TTFT_S))) == {"w": Outcome.BEST_EFFORT}

    def test_a_contract_that_wants_a_refusal_gets_one(self) -> None:
        desk = Desk(options=AdmissionOptions(max_hold_s=0.0))
        fill(desk)
        desk.core.arrived(desk.arrival("w", 2000, contract(HELD_TTFT_S, refuse=True)))
        (verdict,) = desk.core.decide(START_S).verdicts
        assert verdict.outcome is Outcome.REFUSED

    def test_who_leaves_is_decided_about_no_more(self, desk: Desk) -> None:
        fill(desk)
        decide(desk, START_S, w=(2000, HELD_TTFT_S))
        assert desk.core.withdrawn("w")
        assert not desk.core.withdrawn("w")
        assert desk.core.decide(START_S + 0.01).verdicts == ()

    def test_without_workers_everybody_is_told(self) -> None:
        (verdict,) = decide(Desk(()), START_S, w=(10, 1.0)).verdicts
        assert (verdict.outcome, verdict.answer) == (Outcome.REFUSED, Unservable.NO_WORKER)


class TestPace:
    def test_rounds_follow_each_other_no_faster_than_arrivals_are_gathered(self, desk: Desk) -> None:
        decide(desk, START_S, a=(10, 1.0))
        assert desk.core.next_round_s == START_S + desk.options.coalesce_s

    def test_planning_takes_no_more_than_its_share_of_time(self, desk: Desk) -> None:
        desk.core.planning_took(START_S, 0.05)
        assert desk.core.next_round_s == pytest.approx(START_S + 0.05 / desk.options.planning_share)
        desk.core.planning_took(START_S, 1e-6)
        assert desk.core.next_round_s == START_S + desk.options.coalesce_s


class TestPatience:
    def waits(self, desk: Desk, name: str = "be") -> Tracked:
        return desk.admit(name, 1000, contract())

    def test_best_effort_that_outwaited_its_patience_is_given_room(self, desk: Desk) -> None:
        request = self.waits(desk)
        assert not desk.core.wants_round(START_S + 29.0)
        assert desk.core.give_room(START_S + 29.0) == []
        assert desk.core.wants_round(START_S + 30.0)
        (given,) = desk.core.give_room(START_S + 30.5)
        assert given.request is request
        assert given.placement.due_s == pytest.approx(START_S + 60.5)
        assert given.placement.prefill_worker_id == "p1"

    def test_one_request_at_a_time_has_such_room(self, desk: Desk) -> None:
        first, _ = self.waits(desk, "be1"), self.waits(desk, "be2")
        assert len(desk.core.give_room(START_S + 31.0)) == 1
        first.planned = True
        desk.core.filed(first)
        assert desk.core.give_room(START_S + 31.0) == []
        first.planned = False
        first.progress = Progress.DECODING
        desk.core.filed(first)
        assert [given.request.facts.request_id for given in desk.core.give_room(START_S + 31.0)] == ["be2"]

    def test_larger_clusters_give_room_to_more(self) -> None:
        desk = Desk((*(f"p{number}" for number in range(8)), "d1"))
        for number in range(4):
            self.waits(desk, f"be{number}")
        assert len(desk.core.give_room(START_S + 31.0)) == 2

    def test_no_room_is_given_where_there_is_none(self, desk: Desk) -> None:
        self.waits(desk)
        for index in range(260):
            desk.admit(f"g{index}", 1000, contract(31.0), START_S + 29.0)
        assert desk.core.give_room(START_S + 31.0) == []


class TestCostThreshold:
    def scarce(self) -> Desk:
        """Return a desk where half of the latest requests found no room."""
        desk = Desk(options=AdmissionOptions(max_hold_s=0.0))
        for index in range(256):
            desk.core._threshold.note(START_S, 100.0, found_no_room=index % 2 == 0)
        desk.core.arrived(desk.arrival("typical", 100, contract(0.24, 0.1)))
        (typical,) = desk.core.decide(START_S).verdicts
        assert typical.outcome is Outcome.GUARANTEED
        return desk

    def test_while_not_all_find_room_the_costliest_leave_room_for_others(self) -> None:
        desk = self.scarce()
        assert desk.admit("first", 2000, contract(5.0, 0.1)).guaranteed, "there is room for both"
        dear = desk.assess("dear", 2000, contract(0.31, 0.1))
        assert (dear.guaranteed, dear.binding) == (False, Binding.PRICE)
        assert desk.assess("worth", 2000, contract(0.31, 0.1, value=20.0)).guaranteed

    def test_it_can_be_turned_off(self) -> None:
        desk = self.scarce()
        desk.core._assessor.view.options = replace(desk.options, cost_threshold=False)
        desk.admit("first", 2000, contract(5.0, 0.1))
        assert desk.assess("dear", 2000, contract(0.31, 0.1)).guaranteed

    def test_refusals_for_want_of_room_make_one(self) -> None:
        desk = Desk(options=AdmissionOptions(max_hold_s=0.0))
        fill(desk)
        decide(desk, START_S, **{f"r{index}": (1500 + index, HELD_TTFT_S) for index in range(64)})
        decide(desk, START_S, **{f"s{index}": (10, 5.0) for index in range(32)})
        assert 10 <= desk.core._threshold.threshold(START_S) < 1564
        assert desk.core._threshold.threshold(START_S + 100.0) == float("inf"), "the burst is forgotten"

    def test_who_is_in_time_without_a_promise_makes_none(self) -> None:
        desk = Desk(options=AdmissionOptions(max_hold_s=0.0))
        for index in range(7):
            desk.admit(f"g{index}", 1900, contract(1.90))
        decide(desk, START_S, **{f"r{index}": (1500, 1.89) for index in range(128)})
        found = desk.core._threshold._latest
        assert len(found) == 128
        assert not all(no_room for _, _, no_room in found) or found[0][2], "the first of them may be in time"


class TestHandOvers:
    def test_hand_overs_are_learnt_from_but_not_each_of_a_burst(self, desk: Desk) -> None:
        before_s = desk.core.handovers.transfer_s("p1", "d1", 1_000_000)
        for index in range(30):
            request = desk.admit(f"r{index}", 100, contract(9.0, 0.5))
            desk.start_decode(request)
            desk.core.handed_over(request, 1_000_000, 0.5, 0.6, START_S + 0.021 * index)
            desk.core.removed(request, complete=True)
        assert desk.core.handovers.transfer_s("p1", "d1", 1_000_000) > 2 * before_s
        other = Desk()
        for index in range(30):
            request = other.admit(f"r{index}", 100, contract(9.0, 0.5))
            other.start_decode(request)
            other.core.handed_over(request, 1_000_000, 0.5, 0.6, START_S + 1e-4 * index)
            other.core.removed(request, complete=True)
        assert other.core.handovers.transfer_s("p1", "d1", 1_000_000) < desk.core.handovers.transfer_s(
            "p1", "d1", 1_000_000
        ), "all but one of these were too close together"


class TestWorkers:
    def test_steps_are_learnt_from(self, desk: Desk) -> None:
        shape = StepShape(1, 500, 125_000.0, 0, 0, 0, 0)
        for index in range(64):
            desk.core.stepped("p1", shape, 0.12, WorkerLoad(running_requests=1), START_S + 0.12 * index)
        worker = desk.worker("p1")
        assert worker.model.step_s(shape) == pytest.approx(0.12, rel=0.05)
        assert worker.steps == 64
        assert 0 < worker.bound_coverage <= 1

    def test_a_worker_that_left_is_forgotten(self, desk: Desk) -> None:
        desk.admit("a", 100, contract(1.0, 0.1))
        desk.core.left("d1")
        assert desk.core.place_again(desk.taken["a"], START_S) is Unservable.NO_WORKER
        assert not desk.core.cluster.usable("p1")

    def test_a_worker_that_takes_the_place_of_another_has_nothing_of_it(self, desk: Desk) -> None:
        tracked = desk.admit("a", 400, contract(10.0, 1.0))
        desk.start_prefill(tracked)
        desk.core.prompt_computed(tracked, 0, 64)
        assert desk.core.prefixes.holders(tracked.facts.blocks, 16) == (("p1", 384),)
        desk.core.joined(desk.worker("p1").facts)
        assert desk.core.prefixes.holders(tracked.facts.blocks, 16) == ()

    def test_a_request_is_placed_again_on_workers_that_are_left(self) -> None:
        desk = Desk(("p1", "d1", "d2"))
        request = desk.admit("a", 100, contract(1.0, 0.1))
        gone = request.decode_worker_id
        desk.core.left(gone)
        placement = desk.core.place_again(request, START_S + 0.5)
        assert not isinstance(placement, Unservable)
        assert placement.decode_worker_id in {"d1", "d2"} - {gone}
        assert placement.due_s == request.rank_s, "it keeps its place among the prompts"
