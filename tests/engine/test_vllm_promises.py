"""What the scheduler decides by, without an engine: contracts as they arrive, and how much is drafted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.protocol import EngineRequest, SamplingOptions
from services.engine.vllm.contracts import MalformedContractError, contract_from_wire, contract_to_wire
from services.engine.vllm.drafting import (
    PROBE_LENGTH,
    PROBE_TOKENS,
    Acceptance,
    DraftBook,
    StepPace,
    draft_length,
)
from services.engine.vllm.scheduling_figures import SchedulingFigures
from services.engine.vllm.support import UnsupportedVllmError, require_attributes, require_parameters
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
        st.sampled_from(["deadline_in_s", "tpot_s", "best_effort", "stated_at_s"]),
        st.one_of(st.text(), st.booleans(), st.lists(st.none()), st.sampled_from([math.nan, math.inf, 10**400])),
    )
    def test_nonsense_names_its_field(self, name: str, value: object) -> None:
        wire = {**contract_to_wire(self.request(deadline_in_s=1.0, tpot_s=0.1), 0.0), name: value}
        if name == "best_effort" and isinstance(value, bool):
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
        book.begin("a")
        dear = StepPace(0.04, 0.004, 8.0)
        while book.length("a"):
            book.add("a", 1, 5, math.inf, dear)
        book.begin("b")
        assert book.length("b") == PROBE_LENGTH, "others gained nothing, but this one has to be tried"
        book.add("b", 1, 2, math.inf, dear)
        assert book.length("b") == 0
        book.add("a", PROBE_TOKENS - 1, 0, math.inf, self.PACE)
        assert book.length("a") == 0
        book.add("a", 1, 0, math.inf, self.PACE)
        assert book.length("a") == PROBE_LENGTH
        for _ in range(60):
            book.add("a", 3, 2, math.inf, self.PACE)
        assert book.length("a") == 7

    def test_request_that_must_not_draft(self) -> None:
        book = DraftBook(7, always=True)
        assert book.length("never begun") == 0
        book.add("never begun", 1, 0, math.inf, self.PACE)
        book.begin("a")
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
