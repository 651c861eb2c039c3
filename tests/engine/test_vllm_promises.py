"""What the scheduler decides by, without an engine: contracts as they arrive, and how much is drafted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.protocol import EngineRequest, SamplingOptions
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
from services.engine.vllm.core.scheduling_figures import SchedulingFigures
from services.engine.vllm.shared.contracts import MalformedContractError, contract_from_wire, contract_to_wire
from services.engine.vllm.shared.support import UnsupportedVllmError, require_attributes, require_parameters
from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceModel, StepShape

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class TestContracts:
    @staticmethod
    def request(**more: Any) -> EngineRequest:
        return EngineRequest("r", (1, 2, 3), 0, SamplingOptions(max_tokens=4), **more)

    def test_survive_the_wire(self) -> None:
        wire = json.loads(json.dumps(contract_to_wire(self.request(deadline_in_s=1.5, tpot_s=0.05), 100.0)))
        contract = contract_from_wire(wire, 0, 100.2)
        assert contract.promise.due_s == 101.5
        assert contract.promise.tpot_s == 0.05
        assert not contract.best_effort

    def test_time_of_statement_in_the_future_is_now(self) -> None:
        """The clock went backwards since."""
        wire = contract_to_wire(self.request(deadline_in_s=1.0), 500.0)
        assert contract_from_wire(wire, 0, 100.0).promise.due_s == 101.0

    def test_deadline_in_the_past_stays_a_promise(self) -> None:
        contract = contract_from_wire(contract_to_wire(self.request(deadline_in_s=-4.0), 100.0), 0, 100.0)
        assert contract.promise.due_s == 96.0
        assert not contract.best_effort

    def test_without_a_target_is_best_effort(self) -> None:
        assert contract_from_wire(contract_to_wire(self.request(), 0.0), 0, 0.0).best_effort

    def test_best_effort_keeps_its_targets(self) -> None:
        wire = contract_to_wire(self.request(deadline_in_s=1.0, tpot_s=0.1, best_effort=True), 0.0)
        assert contract_from_wire(wire, 0, 0.0).best_effort

    @given(
        st.sampled_from(["deadline_in_s", "tpot_s", "best_effort", "stated_at_s", "application"]),
        st.one_of(st.text(), st.booleans(), st.lists(st.none()), st.sampled_from([math.nan, math.inf, 10**400])),
    )
    def test_nonsense_names_its_field(self, name: str, value: object) -> None:
        wire = {**contract_to_wire(self.request(deadline_in_s=1.0, tpot_s=0.1), 0.0), name: value}
        if (name == "best_effort" and isinstance(value, bool)) or (name == "application" and isinstance(value, str)):
            return
        if name == "stated_at_s" and isinstance(value, float):
            # Not a duration that anything is computed from before it is cut to now.
            return
        with pytest.raises(MalformedContractError, match=name):
            contract_from_wire(wire, 0, 0.0)

    @given(ANYTHING)
    def test_anything_else_is_malformed_or_harmless(self, wire: object) -> None:
        try:
            contract = contract_from_wire(wire, 0, 0.0)
        except MalformedContractError:
            return
        assert contract.promise.tpot_s > 0
        assert not math.isnan(contract.promise.due_s)


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


class TestSupport:
    def test_missing_hook_names_the_supported_release(self) -> None:
        with pytest.raises(UnsupportedVllmError, match=r"supports vLLM 0\.32"):
            require_attributes(object(), "kv_holding_waiting")

    def test_changed_hook_names_the_supported_release(self) -> None:
        def hook(request: object, tokens: int) -> int:
            return tokens if request else 0

        with pytest.raises(UnsupportedVllmError, match=r"hook takes \['request', 'tokens'\].*supports vLLM 0\.32"):
            require_parameters(hook, "request", "num_computed_tokens", "num_new_tokens")


def test_figures_of_nothing_and_of_something() -> None:
    figures = SchedulingFigures()
    assert figures.to_wire()["steps"] == 0
    figures.ran(0.04, 0.05, 0.05)
    figures.ran(0.04, 0.05, 0.08)
    assert figures.to_wire()["bound_coverage"] == 0.5
    assert figures.to_wire()["prediction_error"] == pytest.approx((0.2 + 0.5) / 2)
