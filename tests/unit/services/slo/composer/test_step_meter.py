"""Step times from running sums: those of the performance model, whatever is added in whichever order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.composer import StepMeter
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepCost, StepForm, StepShape
from tests.unit.services.slo.composer.works import models

ADDITIVE = PerformanceModel(
    PerformanceCoefficients(0.010, 1e-3, 1e-5, 1e-6, "measured", per_request_s=1e-4, per_draft_step_s=2e-3),
    margins=(1.1, 1.2, 1.3),
)
ROOFLINE = PerformanceModel(
    PerformanceCoefficients(
        0.001,
        1e-3,
        0.0,
        1e-6,
        "measured",
        form=StepForm.ROOFLINE,
        memory=StepCost(base_s=0.015, per_context_token_s=1e-6, per_attention_pair_s=3e-6),
    ),
    margins=(1.1, 1.2, 1.3),
)
additions = st.lists(
    st.one_of(
        st.tuples(st.just("decodes"), st.integers(1, 9), st.integers(0, 4000)),
        st.tuples(st.just("drafts"), st.integers(1, 9), st.integers(1, 5)),
        st.tuples(st.just("prefill"), st.integers(1, 300), st.integers(0, 4000)),
        st.tuples(st.just("extend"), st.integers(1, 300), st.integers(0, 4000)),
    ),
    max_size=12,
)


def filled(model: PerformanceModel, steps: list[tuple[str, int, int]]) -> tuple[StepMeter, StepShape]:
    """Return a meter after these additions, and the shape that they make by its definition."""
    meter, shape = StepMeter(model), StepShape()
    for kind, first, second in steps:
        if kind == "decodes":
            meter.add_decodes(first, second)
            shape = replace(
                shape,
                decode_requests=shape.decode_requests + first,
                decode_tokens=shape.decode_tokens + first,
                decode_context_tokens=shape.decode_context_tokens + second,
            )
        elif kind == "drafts" and shape.decode_requests:
            meter.add_drafts(first, second)
            shape = replace(
                shape,
                decode_tokens=shape.decode_tokens + first,
                draft_steps=max(shape.draft_steps, second),
            )
        elif kind == "prefill" or (kind == "extend" and shape.prefill_requests):
            (meter.add_prefill if kind == "prefill" else meter.extend_prefill)(first, second)
            shape = replace(
                shape,
                prefill_requests=shape.prefill_requests + (kind == "prefill"),
                prefill_tokens=shape.prefill_tokens + first,
                prefill_attention_pairs=shape.prefill_attention_pairs + first * (second + first / 2),
            )
    return meter, shape


@given(models(), additions)
def test_a_step_takes_what_the_model_says_of_its_shape(
    model: PerformanceModel, steps: list[tuple[str, int, int]]
) -> None:
    meter, shape = filled(model, steps)
    assert meter.shape() == shape
    assert meter.tokens == shape.tokens
    decode, mixed, prefill = model.margins
    expected = PerformanceModel(model.coefficients, margins=(decode, max(decode, mixed), prefill))
    if shape.tokens:
        assert meter.seconds() == pytest.approx(expected.step_s(shape))
        assert meter.seconds() >= model.step_s(shape) - 1e-12
    meter.clear()
    assert meter.shape() == StepShape()


@given(models(), additions, st.integers(1, 9), st.integers(0, 4000))
def test_what_a_step_would_take_is_what_it_takes(
    model: PerformanceModel, steps: list[tuple[str, int, int]], first: int, second: int
) -> None:
    meter, _ = filled(model, steps)
    with_decodes_s = meter.with_decode_s(second, first)
    with_prefill_s = meter.with_prefill_s(first, second)
    assert with_decodes_s >= meter.seconds() - 1e-12 or not meter.decode_tokens
    if meter.decode_requests:
        with_drafts_s = meter.with_drafts_s(first, 1 + second % 6)
        meter.add_drafts(first, 1 + second % 6)
        assert meter.seconds() == pytest.approx(with_drafts_s)
        meter, _ = filled(model, steps)
    meter.add_decodes(first, second)
    assert meter.seconds() == pytest.approx(with_decodes_s)
    meter, _ = filled(model, steps)
    meter.add_prefill(first, second)
    assert meter.seconds() == pytest.approx(with_prefill_s)


def test_a_prefill_beside_decodes_never_makes_a_step_shorter() -> None:
    """Mixed steps may have been better predicted than those of decodes."""
    meter = StepMeter(replace(ADDITIVE, margins=(1.5, 1.0, 1.0)))
    meter.add_decodes(10, 1000)
    before_s = meter.seconds()
    meter.add_prefill(1, 0)
    assert meter.seconds() > before_s


@given(models(), additions, st.integers(1, 2000), st.integers(0, 4000), st.floats(1e-4, 0.5))
def test_a_chunk_is_the_longest_that_keeps_the_limit(
    model: PerformanceModel, steps: list[tuple[str, int, int]], pending: int, context: int, limit_s: float
) -> None:
    meter, _ = filled(model, steps)
    chunk = meter.chunk(pending, context, limit_s)
    assert 0 <= chunk <= pending
    if chunk:
        assert meter.with_prefill_s(chunk, context) <= limit_s
    if chunk < pending:
        # A request that costs nothing, and tokens that cost next to nothing, are beyond what floats tell apart.
        assert meter.with_prefill_s(chunk + 2, context) > limit_s * (1 - 1e-9)
    assert meter.chunk(pending, context, math.inf) == pending


@given(models(), st.integers(1, 9), st.integers(0, 12), st.floats(0.0, 0.2))
def test_drafts_are_as_many_as_keep_the_limit(
    model: PerformanceModel, decodes: int, proposed: int, limit_s: float
) -> None:
    meter, _ = filled(model, [("decodes", decodes, 500)])
    drafts = meter.drafts(proposed, limit_s)
    assert 0 <= drafts <= proposed
    if drafts:
        assert meter.with_drafts_s(drafts, drafts) <= limit_s
    if drafts < proposed:
        assert meter.with_drafts_s(drafts + 1, drafts + 1) > limit_s


def test_parts_of_a_step_have_the_margin_of_the_widest_kind() -> None:
    meter = StepMeter(ADDITIVE)
    assert meter.shortest_step_s() == pytest.approx(1.3 * (0.010 + 1e-3 + 1e-4))
    assert meter.overhead_s() == pytest.approx(1.3 * 0.010)
    assert meter.prefill_s(100, 50) == pytest.approx(1.3 * (100 * 1e-3 + 1e-4 + 100 * 100 * 1e-6))
    assert meter.decodes_s(1000, 4) == pytest.approx(1.2 * (4 * 1.1e-3 + 1000 * 1e-5))
    mixed_widest = StepMeter(replace(ADDITIVE, margins=(1.4, 1.2, 1.3)))
    assert mixed_widest.shortest_step_s() == pytest.approx(1.4 * 0.0111)
    assert mixed_widest.prefill_s(100, 50) == pytest.approx(1.4 * 0.1101)


def test_parts_of_a_roofline_are_the_larger_of_both_costs() -> None:
    meter = StepMeter(ROOFLINE)
    assert meter.shortest_step_s() == pytest.approx(1.3 * 0.015)
    assert meter.overhead_s() == pytest.approx(1.3 * 0.015)
    assert meter.prefill_s(100, 0) == pytest.approx(1.3 * (0.1 + 5000e-6))
    assert meter.prefill_s(1000, 3000) == pytest.approx(1.3 * 1000 * 3500 * 3e-6)
    assert meter.decodes_s(100_000, 4) == pytest.approx(1.2 * 0.1)


def test_the_best_case_is_what_is_expected_where_that_is_less_than_configured() -> None:
    assert StepMeter(replace(ADDITIVE, margins=(1.0, 1.0, 1.0))).best_case_fraction(0.8) == 0.8
    assert StepMeter(replace(ADDITIVE, margins=(1.0, 1.0, 2.0))).best_case_fraction(0.8) == 0.5
    assert StepMeter(replace(ADDITIVE, margins=(1.0, 4.0, 2.0))).best_case_fraction(0.8) == 0.25
    assert StepMeter(replace(ADDITIVE, margins=(0.5, 0.5, 0.5))).best_case_fraction(1.0) == 1.0
