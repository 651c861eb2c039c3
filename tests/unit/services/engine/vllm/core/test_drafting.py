"""How many tokens are drafted, and how many may be so that no promise depends on them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.vllm.core.drafting import (
    PROBE_LENGTH,
    PROBE_TOKENS,
    Acceptance,
    DraftBook,
    PromisedStream,
    StepPace,
    draft_length,
    draft_room,
)
from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceModel, StepShape


class TestDraftLength:
    PACE = StepPace(step_s=0.04, token_s=0.0004, tokens=4.0)

    @settings(deadline=None)
    @given(st.floats(0.0, 0.99), st.floats(0.001, 1.0), st.integers(0, 10))
    def test_within_what_is_allowed(self, alpha: float, tpot_s: float, longest: int) -> None:
        assert 0 <= draft_length(alpha, tpot_s, self.PACE, longest) <= longest

    @given(st.floats(0.0, 0.98), st.floats(0.0, 0.01))
    def test_grows_with_acceptance(self, alpha: float, more: float) -> None:
        assert draft_length(alpha, math.inf, self.PACE, 10) <= draft_length(alpha + more, math.inf, self.PACE, 10)

    def test_nothing_where_it_does_not_pay(self) -> None:
        assert draft_length(0.05, math.inf, StepPace(0.06, 0.0004, 32.0), 10) == 0

    def test_fewest_that_keep_a_rate_faster_than_steps(self) -> None:
        dear = StepPace(step_s=0.1, token_s=0.05, tokens=8.0)
        assert draft_length(0.5, 0.06, dear, 10) == 2
        assert draft_length(0.5, math.inf, dear, 10) == 0

    def test_rate_out_of_reach_asks_for_no_more_than_pays(self) -> None:
        assert draft_length(0.1, 0.001, StepPace(0.1, 0.05, 8.0), 10) == 0

    def test_pace_of_a_step(self) -> None:
        model = PerformanceModel(SMOLLM2_135M_ONE_CORE)
        shape = StepShape(decode_requests=3, decode_tokens=12, decode_context_tokens=600)
        pace = StepPace.of(shape, 7, model)
        assert pace.step_s == pytest.approx(model.decode_step_s(3, 600))
        assert pace.token_s == pytest.approx(SMOLLM2_135M_ONE_CORE.per_token_s)
        assert pace.tokens == 7.0


class TestDraftRoom:
    EXPECTED = PerformanceModel(SMOLLM2_135M_ONE_CORE)
    BOUND = PerformanceModel(SMOLLM2_135M_ONE_CORE, margins=(1.1, 1.1, 1.1))
    SHAPE = StepShape(1, 100, 5000.0, 4, 24, 1200, 5)
    PLAIN_S = EXPECTED.decode_step_s(4, 1200)

    def room(self, tpots_s: list[float], longest: int = 10) -> int:
        streams = [PromisedStream(tpot_s) for tpot_s in tpots_s]
        return draft_room(self.SHAPE, streams, self.EXPECTED, self.BOUND, longest)

    def longer_s(self, drafts: int) -> float:
        return self.BOUND.step_s(
            StepShape(decode_requests=4, decode_tokens=4 * (1 + drafts), decode_context_tokens=1200, draft_steps=drafts)
        )

    @given(st.lists(st.floats(0.01, 0.2), max_size=6), st.integers(1, 10))
    def test_no_promise_that_can_be_kept_depends_on_acceptance_that_was_not_shown(
        self, tpots_s: list[float], longest: int
    ) -> None:
        room = self.room(tpots_s, longest)
        assert 0 <= room <= longest
        can_be_kept = [tpot_s for tpot_s in tpots_s if tpot_s >= self.PLAIN_S]
        if can_be_kept and room:
            assert self.longer_s(room) <= min(can_be_kept)
        if can_be_kept and room < longest:
            assert self.longer_s(room + 1) > min(can_be_kept)

    def test_tight_promises_leave_no_room(self) -> None:
        assert self.room([1.01 * self.PLAIN_S, math.inf]) == 0
        assert self.room([1.11 * self.PLAIN_S]) == 0

    def test_loose_and_absent_promises_leave_all(self) -> None:
        assert self.room([10 * self.PLAIN_S]) == 10
        assert self.room([math.inf]) == 10

    def test_what_a_stream_is_ahead_pays_for_probes_and_not_all_of_it(self) -> None:
        tight_s = 1.01 * self.PLAIN_S

        def room(left_s: float) -> int:
            return draft_room(self.SHAPE, [PromisedStream(tight_s, 0.0, left_s)], self.EXPECTED, self.BOUND, 10)

        assert room(tight_s) == 0
        cost_s = self.longer_s(2) - tight_s
        assert room(self.BOUND.decode_step_s(4, 1200) + 4.01 * cost_s) == 2

    def test_acceptance_that_was_shown_may_be_relied_on(self) -> None:
        tight_s = 1.01 * self.PLAIN_S
        accepted = PromisedStream(tight_s, 0.7)
        assert draft_room(self.SHAPE, [accepted], self.EXPECTED, self.BOUND, 10) == 10
        others = [accepted, PromisedStream(tight_s)]
        assert draft_room(self.SHAPE, others, self.EXPECTED, self.BOUND, 10) == 0, "theirs are not"

    def test_promises_that_only_drafts_can_keep_are_not_in_the_way(self) -> None:
        assert self.room([0.5 * self.PLAIN_S]) == 10
        assert self.room([0.5 * self.PLAIN_S, 1.01 * self.PLAIN_S]) == 0


class TestDraftBook:
    PACE = TestDraftLength.PACE

    def test_acceptance_follows_what_is_seen(self) -> None:
        acceptance = Acceptance()
        for _ in range(200):
            acceptance.add(5, 5)
        assert acceptance.probability(0.5, 4.0) > 0.95
        for _ in range(200):
            acceptance.add(5, 0)
        assert acceptance.probability(0.5, 4.0) < 0.1

    def test_request_that_gains_nothing_stops_and_tries_again(self) -> None:
        book = DraftBook(7, always=False)
        book.begin("a", "chat")
        assert book.length("a") == PROBE_LENGTH, "nothing is known: it has to be tried"
        dear = StepPace(0.04, 0.004, 8.0)
        book.add("a", 1, 2, math.inf, dear)
        assert book.length("a") == 0
        for wait in (2 * PROBE_TOKENS, 4 * PROBE_TOKENS):
            book.add("a", wait - 1, 0, math.inf, self.PACE)
            assert book.length("a") == 0
            book.add("a", 1, 0, math.inf, self.PACE)
            assert book.length("a") == PROBE_LENGTH
            book.add("a", 1, 2, math.inf, dear)
            assert book.length("a") == 0, "each probe in vain doubles the time to the next"
        book.add("a", 8 * PROBE_TOKENS, 0, math.inf, self.PACE)
        for _ in range(60):
            book.add("a", 3, 2, math.inf, self.PACE)
        assert book.length("a") == 7

    def test_acceptance_is_that_of_the_application(self) -> None:
        book = DraftBook(7, always=False)
        book.begin("a", "translator")
        book.begin("b", "coder")
        for _ in range(20):
            book.add("a", 1, 4, math.inf, self.PACE)
            book.add("b", 5, 4, math.inf, self.PACE)
        book.begin("c", "translator")
        book.begin("d", "coder")
        assert book.length("c") <= PROBE_LENGTH < book.length("d")

    def test_more_than_a_probe_only_after_acceptance_was_shown(self) -> None:
        book = DraftBook(7, always=False)
        book.begin("a", "coder")
        book.add("a", 3, 2, math.inf, self.PACE)
        assert book.length("a") == PROBE_LENGTH
        for _ in range(4):
            book.add("a", 3, 2, math.inf, self.PACE)
        assert book.length("a") > PROBE_LENGTH

    def test_only_acceptance_that_was_shown_is_relied_on(self) -> None:
        book = DraftBook(7, always=False)
        book.begin("a", "coder")
        book.add("a", 3, 2, math.inf, self.PACE)
        assert book.relied_on("a") == 0.0
        for _ in range(20):
            book.add("a", 3, 2, math.inf, self.PACE)
        assert 0.6 < book.relied_on("a") < 0.8
        for _ in range(60):
            book.add("a", 1, 2, math.inf, StepPace(0.04, 0.01, 8.0))
        assert book.relied_on("a") == 0.0, "it drafts no more"
        assert book.relied_on("never begun") == 0.0

    def test_room_limits_probes_too(self) -> None:
        book = DraftBook(7, always=False)
        book.begin("a", "")
        book.limit(1)
        assert book.length("a") == 1
        book.limit(0)
        assert book.length("a") == 0
        book.limit(7)
        assert book.length("a") == PROBE_LENGTH

    def test_request_that_must_not_draft(self) -> None:
        book = DraftBook(7, always=True)
        assert book.length("never begun") == 0
        book.add("never begun", 1, 0, math.inf, self.PACE)
        book.begin("a", "")
        assert book.length("a") == 7
        book.end("a")
        assert book.length("a") == 0
