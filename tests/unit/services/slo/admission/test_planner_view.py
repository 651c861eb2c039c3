"""The cluster as the planner is asked about it: what each worker has promised, and what is kept between rounds."""

from __future__ import annotations

import math

import pytest

from services.slo.admission import AdmissionOptions, OtherDecodes, OtherPrompts, OtherWork, WorkerLoad
from services.slo.admission.planner_view import LOCAL_MARGIN, UNLIMITED_SLOTS, PlannerView
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.admission.tiers import tiers_of
from services.slo.attainment import AttainmentMeter
from services.slo.performance import StepShape
from services.slo.planner import Problem, ReservedHeadroom, Worker
from tests.unit.services.slo.admission.support import KV_BLOCKS, START_S, Desk, contract

KV_TOKENS = 16 * KV_BLOCKS
TIERS = tiers_of([0.05, 0.1])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def view_of(desk: Desk) -> PlannerView:
    return desk.core._view


def worker_of(desk: Desk, worker_id: str, now_s: float = START_S) -> Worker:
    return view_of(desk).worker(desk.worker(worker_id), TIERS, now_s)


def problem(desk: Desk, *wanted: PromiseWanted, now_s: float = START_S) -> Problem:
    (group,) = desk.core.cluster.groups()
    return view_of(desk).problem(group, wanted, now_s, None, None, seed=3)


def wanted(request_id: str, tpot_s: float | None = 0.1) -> PromiseWanted:
    return PromiseWanted(request_id, 100, 150, START_S + 2.0, tpot_s)


class TestPrefillWorkers:
    def test_an_idle_one_has_all_its_memory(self, desk: Desk) -> None:
        seen = worker_of(desk, "p1")
        assert (seen.prefills, seen.decodes) == (True, False)
        assert (seen.kv_tokens, seen.kv_tokens_free) == (KV_TOKENS, KV_TOKENS)
        assert (seen.slots_free, seen.busy_s, seen.ahead_s) == (UNLIMITED_SLOTS, 0.0, 0.0)
        assert (seen.promised, seen.releases) == ((), ())

    def test_leases_planned_prompts_and_those_of_others_take_memory(self, desk: Desk) -> None:
        desk.admit("planned", 500, contract(5.0))
        desk.admit("best effort", 700, contract())
        desk.core.loaded("p1", WorkerLoad(kv_blocks_leased=10), START_S, OtherWork(prompts=(OtherPrompts(3.0, 200),)))
        assert worker_of(desk, "p1").kv_tokens_free == KV_TOKENS - 160 - 500 - 200

    def test_memory_is_never_less_than_none(self, desk: Desk) -> None:
        desk.core.loaded("p1", WorkerLoad(kv_blocks_leased=KV_BLOCKS + 5), START_S)
        assert worker_of(desk, "p1").kv_tokens_free == 0

    def test_promised_prompts_are_told_by_when_they_are_due(self, desk: Desk) -> None:
        begun, waits = desk.admit("begun", 500, contract(5.0)), desk.admit("waits", 300, contract(9.0))
        desk.start_prefill(begun, at_s=START_S + 1.0)
        begun.prefilled_tokens = 120
        desk.admit("best effort", 700, contract())
        assert waits.planned
        seen = worker_of(desk, "p1", START_S + 0.25)
        assert [promised.deadline_s for promised in seen.promised] == pytest.approx([4.75, 8.75])
        figures = [(promised.prompt_tokens, promised.computed_tokens) for promised in seen.promised]
        assert figures == [(500, 120), (300, 0)]
        assert {(promised.decode_tier, promised.kv_tokens) for promised in seen.promised} == {(-1, 0)}


class TestDecodeWorkers:
    def stream(self, desk: Desk, name: str, tpot_s: float, prompt_tokens: int = 100) -> None:
        desk.start_decode(desk.admit(name, prompt_tokens, contract(9.0, tpot_s)))

    def test_streams_count_in_their_tiers_and_their_memory_and_slots_are_taken(self, desk: Desk) -> None:
        for name, tpot_s in (("a", 0.05), ("b", 0.1), ("c", 0.2)):
            self.stream(desk, name, tpot_s)
        desk.admit("best effort", 5000, contract())
        seen = worker_of(desk, "d1")
        assert (seen.prefills, seen.decodes) == (False, True)
        assert seen.running == (1, 2)
        assert seen.slots_free == 16 - 3
        assert seen.kv_tokens_free == KV_TOKENS - view_of(desk).loads.of("d1", TIERS).planned.kv_tokens()
        assert seen.kv_tokens_free > KV_TOKENS - 5000, "what has no room in the plan does not count"
        assert sum(release.requests for release in seen.releases) == 3
        assert seen.handover_steps == desk.core.handovers.steps_bound("d1", 0.95, busy=True)

    def test_work_of_others_counts_like_ours(self, desk: Desk) -> None:
        desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.1, 4, 900), OtherDecodes(None, 1, 50))))
        seen = worker_of(desk, "d1")
        assert (seen.running, seen.context_tokens) == ((0, 4), (0, 900))
        assert (seen.slots_free, seen.kv_tokens_free) == (16 - 5, KV_TOKENS - 950)
        assert seen.handover_steps == desk.core.handovers.steps_bound("d1", 0.95, busy=True)
        desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.1, 99, 900),)))
        assert worker_of(desk, "d1").slots_free == 0

    def test_an_idle_one_takes_hand_overs_as_an_idle_one_does(self, desk: Desk) -> None:
        assert worker_of(desk, "d1").handover_steps == desk.core.handovers.steps_bound("d1", 0.95, busy=False)

    def test_one_that_nothing_has_happened_to_is_planned_with_as_it_was_seen(self, desk: Desk) -> None:
        self.stream(desk, "a", 0.1)
        first = worker_of(desk, "d1")
        most_s = desk.options.reuse_worker_s
        assert worker_of(desk, "d1", START_S + 0.99 * most_s) is first
        assert worker_of(desk, "d1", START_S + 1.01 * most_s) is not first
        again = worker_of(desk, "d1", START_S + 1.01 * most_s)
        self.stream(desk, "b", 0.1)
        assert worker_of(desk, "d1", START_S + 1.01 * most_s).running == (0, 2)
        assert again.running == (0, 1)
        desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.05, 1, 10),)))
        assert worker_of(desk, "d1", START_S + 1.01 * most_s).running == (1, 2)

    def test_one_of_the_same_name_that_comes_back_is_another(self, desk: Desk) -> None:
        first = worker_of(desk, "d1")
        view_of(desk).forget("d1")
        assert worker_of(desk, "d1") is not first


class TestLocalPrefill:
    def local(self, *worker_ids: str) -> Desk:
        return Desk(worker_ids or ("p1", "d1"), AdmissionOptions(local_prefill=True))

    def test_only_where_it_is_allowed(self, desk: Desk) -> None:
        desk.core.cluster.groups()
        assert not view_of(desk).prefills_too(desk.worker("d1"))
        local = self.local()
        local.core.cluster.groups()
        assert view_of(local).prefills_too(local.worker("d1"))
        assert view_of(desk).prefills_too(desk.worker("p1"))

    def test_not_while_steps_with_both_cannot_be_told(self) -> None:
        for ids, prefills in ((("p1", "d1"), False), (("d1",), True)):
            desk = self.local(*ids)
            desk.core.cluster.groups()
            worker = desk.worker("d1")
            mixed = StepShape(1, 50, 1000.0, 2, 2, 100)
            for index in range(200):
                decodes = StepShape(decode_requests=2, decode_tokens=2, decode_context_tokens=100)
                desk.core.stepped("d1", decodes, worker.model.step_s(decodes), WorkerLoad(), START_S)
                took_s = worker.model.step_s(mixed) * (0.5, 1.0, 2.0)[index % 3]
                desk.core.stepped("d1", mixed, took_s, WorkerLoad(), START_S)
            margins = worker.bound.margins
            assert margins[1] > LOCAL_MARGIN * margins[0]
            assert view_of(desk).prefills_too(worker) is prefills, "alone it has to"

    def test_a_prompt_that_stays_is_told_with_its_rate_and_its_memory(self) -> None:
        desk = self.local("d1")
        request = desk.admit("a", 200, contract(5.0, 0.1))
        seen = worker_of(desk, "d1")
        (promised,) = seen.promised
        assert (promised.decode_tier, promised.kv_tokens) == (1, desk.core.promised_kv_tokens(request))
        assert seen.running == (0, 0), "it does not decode yet"
        assert worker_of(desk, "d1") is not seen, "a worker with prompts is looked at afresh"

    def test_steps_are_as_short_as_the_tightest_rate_wants_them(self) -> None:
        seen, other = worker_of(self.local("d1"), "d1"), worker_of(Desk(), "d1")
        assert seen.profile.max_step_s == 0.05
        assert other.profile.max_step_s > 0.05

    def test_streams_ahead_of_their_due_times_leave_time(self) -> None:
        desk = self.local("d1")
        stream = desk.admit("a", 100, contract(9.0, 0.1))
        stream.meter.note_tokens(1, START_S)
        stream.meter.note_tokens(9, START_S + 0.1)
        stream.generated_tokens = 10
        desk.start_decode(stream)
        # Its next token is due 0.9 s after the ninth came.
        seen = worker_of(desk, "d1", START_S + 0.1)
        assert seen.ahead_s == pytest.approx(seen.profile.bound.without_s(1, sum(seen.context_tokens)))
        assert seen.ahead_s > 0
        assert worker_of(desk, "d1", START_S + 0.79).ahead_s > 0
        assert worker_of(desk, "d1", START_S + 0.81).ahead_s == 0.0, "less than two TPOTs ahead"
        desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.1, 1, 10),)))
        assert worker_of(desk, "d1", START_S + 0.1).ahead_s == 0.0, "theirs may be due at any time"


class TestProblem:
    def test_candidates_are_told_in_seconds_from_now(self, desk: Desk) -> None:
        seen = problem(desk, wanted("a"), wanted("b", None), now_s=START_S + 0.5)
        assert [candidate.candidate_id for candidate in seen.candidates] == ["a", "b"]
        assert [candidate.deadline_s for candidate in seen.candidates] == [1.5, 1.5]
        assert [candidate.tier for candidate in seen.candidates] == [0, -1]
        assert [worker.worker_id for worker in seen.workers] == ["p1", "d1"]
        assert (seen.seed, seen.typical_arrival, seen.headroom_requests) == (3, None, 0.0)

    def test_headroom_is_counted_in_typical_requests(self, desk: Desk) -> None:
        (group,) = desk.core.cluster.groups()
        typical = PromiseWanted("t", 70, 70, 0.8, 0.1)
        headroom = ReservedHeadroom(2.0, 55.0)
        seen = view_of(desk).problem(group, [wanted("a")], START_S, headroom, typical, seed=0)
        assert seen.typical_arrival is not None
        assert (seen.typical_arrival.candidate_id, seen.typical_arrival.deadline_s) == ("t", 0.8)
        assert (seen.headroom_requests, seen.cost_threshold) == (2.0, 55.0)
        without = view_of(desk).problem(group, [wanted("a")], START_S, None, typical, seed=0)
        assert (without.typical_arrival, without.headroom_requests, without.cost_threshold) == (None, 0.0, 0.0)

    def test_tiers_cover_candidates_promises_and_other_routers(self, desk: Desk) -> None:
        desk.start_decode(desk.admit("a", 100, contract(9.0, 0.07)))
        desk.core.loaded("d1", WorkerLoad(), START_S, OtherWork((OtherDecodes(0.2, 1, 10),)))
        tiers = problem(desk, wanted("b", 0.05)).workers[0].profile.tiers
        assert tiers.tpot_s == (0.05, 0.07, 0.2)

    def test_tables_and_links_serve_for_a_second(self, desk: Desk) -> None:
        first = problem(desk, wanted("a"))
        later = problem(desk, wanted("b"), now_s=START_S + 0.99)
        assert later.workers[0].profile is first.workers[0].profile
        assert later.topology is first.topology
        old = problem(desk, wanted("c"), now_s=START_S + 1.0)
        assert old.workers[0].profile is not first.workers[0].profile
        assert old.topology is not first.topology

    def test_another_rate_makes_other_tables(self, desk: Desk) -> None:
        first = problem(desk, wanted("a"))
        other = problem(desk, wanted("b", 0.07))
        assert other.workers[0].profile is not first.workers[0].profile
        assert other.workers[0].profile.tiers.tpot_s == (0.07, 0.1)

    def test_a_promise_whose_rate_has_changed_is_covered_when_tables_are_made_again(self, desk: Desk) -> None:
        stream = desk.admit("s", 100, contract(9.0, 0.1))
        desk.start_decode(stream)
        problem(desk, wanted("a"))
        stream.meter = AttainmentMeter(contract(9.0, 0.4), START_S)
        assert problem(desk, wanted("b"), now_s=START_S + 0.99).workers[0].profile.tiers.tpot_s == (0.1,)
        assert problem(desk, wanted("c"), now_s=START_S + 1.0).workers[0].profile.tiers.tpot_s == (0.1, 0.4)


def test_a_request_without_a_deadline_has_none_for_the_planner() -> None:
    candidate = PromiseWanted("r", 10, 20).candidate(TIERS, START_S)
    assert (candidate.deadline_s, candidate.tier, candidate.value) == (math.inf, -1, 1.0)
    assert PromiseWanted("r", 10, 20, value=4.0).cost == 2.5
