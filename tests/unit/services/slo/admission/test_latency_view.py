"""Workers as forecasts of latency see them: what is before a new prompt, what a new stream runs beside."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.admission import AdmissionOptions, OtherDecodes, OtherPrompts, OtherWork, WorkerLoad
from services.slo.admission.latency_view import LEAST_SHARE, RoundViews, decode_view, prefill_view, transfer
from services.slo.admission.planner_view import PlannerView
from services.slo.latency_forecast import Forecast, Placement, QueuedPrefill
from tests.unit.services.slo.admission.support import KV_BLOCKS, START_S, Desk, contract


@pytest.fixture
def desk() -> Desk:
    return Desk()


def view_of(desk: Desk) -> PlannerView:
    return desk.core._view


def loaded(desk: Desk, worker_id: str, others: OtherWork) -> None:
    desk.core.loaded(worker_id, WorkerLoad(), START_S, others)


class TestPrefillView:
    def test_an_idle_worker_has_nothing_before_a_prompt(self, desk: Desk) -> None:
        worker = desk.worker("p1")
        seen = prefill_view(view_of(desk), worker, START_S)
        assert (seen.worker_id, seen.queue, seen.busy_until_s, seen.share) == ("p1", (), START_S, 1.0)
        assert (seen.model, seen.bound) == (worker.model, worker.bound)
        assert (seen.max_step_tokens, seen.kv_tokens) == (2048, 16 * KV_BLOCKS)

    def test_prompts_come_by_rank_with_what_is_left_of_them(self, desk: Desk) -> None:
        desk.admit("best effort", 300, contract())
        promised = desk.admit("promised", 500, contract(5.0))
        begun = desk.admit("begun", 400, contract(9.0))
        desk.start_prefill(begun, at_s=START_S + 1.0)
        begun.prefilled_tokens = 150
        assert promised.planned
        seen = prefill_view(view_of(desk), desk.worker("p1"), START_S)
        assert seen.queue == (
            QueuedPrefill(START_S + 5.0, 500, guaranteed=True),
            QueuedPrefill(START_S + 9.0, 250, guaranteed=True),
            QueuedPrefill(START_S + 30.0, 300, guaranteed=False),
        )

    def test_what_the_step_under_way_computes_is_left_no_more(self, desk: Desk) -> None:
        desk.start_prefill(desk.admit("a", 400, contract(9.0)), at_s=START_S - 1.0)
        worker = desk.worker("p1")
        worker.load, worker.step_began_s = WorkerLoad(running_requests=1), START_S
        seen = prefill_view(view_of(desk), worker, START_S + 0.01)
        assert seen.queue == ()
        assert seen.busy_until_s == pytest.approx(START_S + worker.bound.prefill_s(400, 2048))

    def test_prompts_of_other_routers_count_from_when_they_were_told(self, desk: Desk) -> None:
        loaded(desk, "p1", OtherWork(prompts=(OtherPrompts(2.0, 700),)))
        worker = desk.worker("p1")
        worker.step_began_s = START_S - 10.0
        (theirs,) = prefill_view(view_of(desk), worker, START_S + 0.5).queue
        assert theirs.due_s == pytest.approx(START_S + 2.0)
        assert theirs.guaranteed

    def test_prompts_get_of_a_decode_worker_what_its_tightest_stream_leaves(self) -> None:
        desk = Desk(options=AdmissionOptions(local_prefill=True))
        worker = desk.worker("d1")
        assert prefill_view(view_of(desk), worker, START_S).share == 1.0
        loaded(desk, "d1", OtherWork((OtherDecodes(0.1, 40, 0), OtherDecodes(0.05, 10, 0), OtherDecodes(None, 50, 0))))
        # A step of a hundred streams takes 20 ms.
        assert prefill_view(view_of(desk), worker, START_S).share == pytest.approx(1 - 0.02 / 0.05)
        loaded(desk, "d1", OtherWork((OtherDecodes(0.0201, 100, 0),)))
        assert prefill_view(view_of(desk), worker, START_S).share == LEAST_SHARE

    def test_a_prefill_worker_shares_with_no_stream(self, desk: Desk) -> None:
        loaded(desk, "p1", OtherWork((OtherDecodes(0.02, 50, 0),)))
        assert prefill_view(view_of(desk), desk.worker("p1"), START_S).share == 1.0

    def test_streams_of_ours_leave_their_part_as_well(self) -> None:
        desk = Desk(options=AdmissionOptions(local_prefill=True))
        for index, tpot_s in enumerate((0.04, 0.09)):
            desk.start_decode(desk.admit(f"s{index}", 100, contract(9.0, tpot_s)))
        step_s = desk.worker("d1").model.decode_step_s(2, 200)
        view = view_of(desk)
        desk.core.assess(desk.arrival("x", 10, contract(9.0, 0.04)), START_S)
        assert prefill_view(view, desk.worker("d1"), START_S).share == pytest.approx(1 - step_s / 0.04)


class TestDecodeView:
    def test_an_idle_worker_is_free(self, desk: Desk) -> None:
        worker = desk.worker("d1")
        seen = decode_view(view_of(desk), worker)
        assert (seen.requests, seen.context_tokens, seen.kv_tokens_free) == (0, 0, 16 * KV_BLOCKS)
        assert (seen.max_running_requests, seen.kv_tokens) == (16, 16 * KV_BLOCKS)
        handovers, coverage = desk.core.handovers, desk.options.handover_coverage
        assert seen.handover_steps == handovers.steps("d1", busy=False)
        assert seen.handover_steps_bound == handovers.steps_bound("d1", coverage, busy=False)

    def test_everybody_who_is_or_will_be_there_counts(self, desk: Desk) -> None:
        desk.admit("waits", 300, contract())
        stream = desk.admit("stream", 200, contract(5.0, 0.1))
        desk.start_decode(stream)
        loaded(desk, "d1", OtherWork((OtherDecodes(0.1, 3, 1000),)))
        seen = decode_view(view_of(desk), desk.worker("d1"))
        assert (seen.requests, seen.context_tokens) == (5, 1500)
        promised = sum(desk.core.promised_kv_tokens(request) for request in desk.taken.values())
        assert 16 * KV_BLOCKS - 1000 - promised <= seen.kv_tokens_free < 16 * KV_BLOCKS - 1500
        assert seen.handover_steps == desk.core.handovers.steps("d1", busy=True)
        assert seen.handover_steps_bound == desk.core.handovers.steps_bound("d1", 0.95, busy=True)

    def test_work_of_other_routers_makes_a_worker_busy(self, desk: Desk) -> None:
        loaded(desk, "d1", OtherWork((OtherDecodes(None, 1, 10),)))
        seen = decode_view(view_of(desk), desk.worker("d1"))
        assert seen.handover_steps == desk.core.handovers.steps("d1", busy=True)


def test_a_transfer_is_that_of_the_bytes_of_its_tokens(desk: Desk) -> None:
    handovers = desk.core.handovers
    seen = transfer(view_of(desk), "p1", desk.worker("d1"), 250)
    assert seen == Forecast(
        handovers.transfer_s("p1", "d1", 250_000), handovers.transfer_bound_s("p1", "d1", 250_000, 0.95)
    )
    assert seen.bound_s > seen.expected_s


class TestRound:
    def test_what_a_round_has_placed_stands_before_what_it_places_next(self, desk: Desk) -> None:
        views = RoundViews(view_of(desk), START_S)
        first, there = desk.worker("p1"), desk.worker("d1")
        before = views.prefill([first], [there]), views.decode([there])
        assert before == ([prefill_view(view_of(desk), first, START_S)], [decode_view(view_of(desk), there)])
        placed = Placement("p1", "d1", START_S + 3.0, Forecast(1.0, 1.0), Forecast(0.1, 0.1))
        views.place(placed, 120, 170)
        views.place(replace(placed, due_s=START_S + 1.0), 80, 90)
        (seen,) = views.prefill([first], [there])
        assert seen.queue == (
            QueuedPrefill(START_S + 1.0, 80, guaranteed=False),
            QueuedPrefill(START_S + 3.0, 120, guaranteed=False),
        )
        (then,) = views.decode([there])
        assert (then.requests, then.context_tokens) == (2, 200)
        assert then.kv_tokens_free == 16 * KV_BLOCKS - 260

    def test_decode_workers_are_looked_at_for_prompts_where_they_may_compute_them(self) -> None:
        desk = Desk(options=AdmissionOptions(local_prefill=True))
        views = RoundViews(view_of(desk), START_S)
        workers = [desk.worker("p1")], [desk.worker("d1")]
        assert [view.worker_id for view in views.prefill(*workers)] == ["p1", "d1"]
        strict = RoundViews(view_of(Desk()), START_S)
        assert [view.worker_id for view in strict.prefill(*workers)] == ["p1"]
