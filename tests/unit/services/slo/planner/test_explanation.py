"""What a request without a place is told: what it lacks, from when on it would fit, and when to ask again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.planner import Binding, Link, PromisedPrefill, Release, StepBound, Topology, Verdict, WorkerProfile
from tests.unit.services.slo.planner.simple import TIERS, ask, colocated, decide, decoder, prefiller

LATE_S = 0.1
"""A request of 50 tokens that is due then must begin 40 ms from now at the latest."""


class TestPrefillTime:
    def test_it_is_held_until_the_latest_start_on_an_idle_worker(self) -> None:
        busy = prefiller(promised=(PromisedPrefill(0.5, 400),))
        decision = decide([busy, decoder()], ask(deadline_s=LATE_S))
        assert (decision.verdict, decision.binding) == (Verdict.HOLD, Binding.PREFILL_TIME)
        # The promised prompt ends at 0.45 s, which is when it is planned again; but 40 ms are all it can wait.
        assert decision.replan_s == pytest.approx(0.04)
        assert decision.expected_first_token_s == pytest.approx(0.45 + 0.06)

    def test_it_is_planned_again_when_the_first_prompt_ends(self) -> None:
        busy = prefiller(promised=(PromisedPrefill(0.03, 20), PromisedPrefill(0.5, 400)))
        decision = decide([busy, decoder()], ask(deadline_s=LATE_S))
        assert decision.replan_s == pytest.approx(0.03)

    def test_it_would_fit_behind_everything_that_is_promised(self) -> None:
        busy = prefiller(promised=(PromisedPrefill(0.45, 400),))
        decision = decide([busy, decoder()], ask(deadline_s=LATE_S))
        assert decision.earliest_s == pytest.approx(0.45 + 0.06 - LATE_S)

    def test_it_would_fit_before_what_has_time_once_it_is_due_later(self) -> None:
        """The first prompt ends with a step that the second fills until 0.198 s, and the second could wait."""
        busy = prefiller(promised=(PromisedPrefill(0.2, 171), PromisedPrefill(5.0, 100)))
        decision = decide([busy, decoder()], ask(deadline_s=LATE_S))
        assert decision.earliest_s == pytest.approx(0.198 + 0.06 - LATE_S)

    def test_where_even_an_idle_worker_would_be_late_it_is_impossible(self) -> None:
        busy = prefiller(busy_s=1.0)
        decision = decide([busy, decoder()], ask(deadline_s=0.0599))
        assert decision.verdict is Verdict.IMPOSSIBLE
        assert (decision.earliest_s, decision.replan_s) == (None, None)
        assert decide([busy, decoder()], ask(deadline_s=0.0601)).verdict is Verdict.NOT_GUARANTEED
        held = decide([busy, decoder()], ask(deadline_s=0.0615))
        assert held.verdict is Verdict.HOLD
        assert held.replan_s == pytest.approx(0.0015)

    def test_the_first_of_several_workers_to_have_time_counts(self) -> None:
        workers = [
            prefiller(f"p{index}", promised=(PromisedPrefill(5.0 + index, 89 * (40 + index)),)) for index in range(2)
        ]
        decision = decide([*workers, decoder()], ask(deadline_s=LATE_S))
        alone = decide([workers[0], decoder()], ask(deadline_s=LATE_S))
        assert decision.expected_first_token_s == alone.expected_first_token_s
        assert decision.earliest_s == alone.earliest_s


class TestDecode:
    def test_memory_comes_free_with_the_requests_that_end(self) -> None:
        full = decoder(kv_tokens_free=10, releases=(Release(3.0, 1, 60), Release(2.0, 1, 60), Release(7.0, 9, 900)))
        decision = decide([prefiller(), full], ask())
        assert (decision.verdict, decision.binding) == (Verdict.HOLD, Binding.KV_MEMORY)
        assert decision.earliest_s == pytest.approx(7.0)
        assert decision.replan_s == pytest.approx(2.0), "something changes then"
        assert decide([prefiller(), full], ask(kv_tokens=130)).earliest_s == pytest.approx(3.0)

    def test_a_slot_comes_free_with_the_requests_that_end(self) -> None:
        full = decoder(slots_free=0, releases=(Release(2.0, 0, 60), Release(3.0, 1, 0)))
        decision = decide([prefiller(), full], ask())
        assert (decision.binding, decision.earliest_s) == (Binding.DECODE_RATE, 3.0)
        assert decide([prefiller(), full], ask(tier=-1)).guaranteed

    def test_rate_comes_free_with_the_requests_that_end(self) -> None:
        crowd = decoder(running=(39, 0), context_tokens=(3900, 0), handover_steps=0.0)
        for tier, earliest_s in ((0, 2.0), (-1, None)):
            full = replace(crowd, releases=(Release(2.0, 5, 500, tier),))
            decision = decide([prefiller(), full], ask(tier=0))
            assert (decision.binding, decision.earliest_s) == (Binding.DECODE_RATE, earliest_s)

    def test_contexts_that_end_come_free(self) -> None:
        profile = WorkerProfile(StepBound(0.01, 1e-3, per_context_token_s=1e-4), TIERS, 512, 0.1)
        long = decoder(profile=profile, running=(2, 0), context_tokens=(300, 0), handover_steps=0.0)
        long = replace(long, releases=(Release(2.0, 1, 250, 0),))
        decision = decide([prefiller(profile=profile), long], ask(tier=0))
        assert (decision.binding, decision.earliest_s) == (Binding.DECODE_RATE, 2.0)

    def test_an_empty_worker_that_could_not_keep_the_rate_makes_it_impossible(self) -> None:
        slow = WorkerProfile(StepBound(0.06, 1e-3), TIERS, 512, 0.2)
        decision = decide([prefiller(), decoder(profile=slow)], ask(tier=0))
        assert (decision.verdict, decision.binding) == (Verdict.IMPOSSIBLE, Binding.DECODE_RATE)
        assert decide([prefiller(), decoder(kv_tokens=149, kv_tokens_free=100)], ask()).verdict is Verdict.IMPOSSIBLE
        assert decide([prefiller(), decoder(kv_tokens=150, kv_tokens_free=100)], ask()).verdict is Verdict.HOLD

    def test_the_quickest_transfer_leaves_the_most_for_the_steps_of_a_handover(self) -> None:
        workers = [prefiller("p0"), prefiller("p1"), decoder(handover_steps=3.0, slots_free=0)]
        links = {("p0", "d"): Link(0.09), ("p1", "d"): Link(0.05)}
        assert decide(workers, ask(), topology=Topology.of(workers, links=links)).verdict is Verdict.HOLD
        far = {("p0", "d"): Link(0.09), ("p1", "d"): Link(0.07)}
        assert decide(workers, ask(), topology=Topology.of(workers, links=far)).verdict is Verdict.IMPOSSIBLE

    def test_decodes_to_come_count_as_if_they_were_there(self) -> None:
        """Of two requests one takes the last slot; the other hears of what ends after both."""
        workers = [prefiller(), decoder(slots_free=1, releases=(Release(2.0, 1, 0),))]
        decision = decide(workers, ask("a", value=0.5), ask("b"))
        assert (decision.binding, decision.earliest_s) == (Binding.DECODE_RATE, 2.0)


class TestOnOneWorker:
    def test_it_lacks_what_the_worker_lacks_longest(self) -> None:
        full = colocated(kv_tokens_free=100, releases=(Release(3.0, 1, 60),))
        decision = decide([full], ask())
        assert (decision.binding, decision.earliest_s) == (Binding.KV_MEMORY, 3.0)
        busy = colocated(promised=(PromisedPrefill(0.45, 400),))
        decision = decide([busy], ask(deadline_s=LATE_S))
        assert decision.binding is Binding.PREFILL_TIME
        assert decision.earliest_s == pytest.approx(0.45 + 0.06 - LATE_S)

    def test_whichever_way_it_fits_earlier_counts(self) -> None:
        helper = colocated("w", kv_tokens_free=0, releases=(Release(1.0, 1, 500),))
        workers = [prefiller(), decoder(kv_tokens_free=0, releases=(Release(3.0, 1, 500),)), helper]
        decision = decide(workers, ask())
        assert (decision.binding, decision.earliest_s) == (Binding.KV_MEMORY, 1.0)
        assert decision.replan_s == 1.0

    def test_a_worker_that_cannot_keep_its_own_decodes_is_no_help(self) -> None:
        lost = colocated(running=(60, 0), context_tokens=(6000, 0))
        decision = decide([lost], ask())
        assert (decision.verdict, decision.binding) == (Verdict.HOLD, Binding.DECODE_RATE)
        assert (decision.earliest_s, decision.expected_first_token_s) == (None, None)
