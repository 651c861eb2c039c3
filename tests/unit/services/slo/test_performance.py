"""Step times from coefficients, in both forms, and over the wire."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numba  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services import wire
from services.slo.performance import (
    SMOLLM2_135M_ONE_CORE,
    VECTOR_LENGTH,
    PerformanceCoefficients,
    PerformanceModel,
    StepCost,
    StepForm,
    StepRegime,
    StepShape,
    step_time_s,
)
from services.wire.description import coefficients_from_wire, coefficients_to_wire
from slos_serve.v1 import worker_pb2

ADDITIVE = PerformanceCoefficients(0.010, 1e-3, 1e-6, 1e-8, "fitted", per_request_s=1e-4, per_draft_step_s=2e-3)
ROOFLINE = PerformanceCoefficients(
    0.001, 1e-4, 0.0, 1e-8, "fitted", form=StepForm.ROOFLINE, memory=StepCost(base_s=0.015, per_context_token_s=1e-6)
)
SHAPES = st.builds(
    StepShape,
    prefill_requests=st.integers(0, 8),
    prefill_tokens=st.integers(0, 8192),
    prefill_attention_pairs=st.floats(0, 1e8),
    decode_requests=st.integers(0, 512),
    decode_tokens=st.integers(0, 2048),
    decode_context_tokens=st.integers(0, 10**7),
    draft_steps=st.integers(0, 10),
)


def test_every_term_of_the_additive_form_counts() -> None:
    shape = StepShape(2, 100, 5000.0, 3, 6, 700, 2)
    assert PerformanceModel(ADDITIVE).step_s(shape) == pytest.approx(
        0.010 + 106 * 1e-3 + 700 * 1e-6 + 5000 * 1e-8 + 5 * 1e-4 + 2 * 2e-3
    )
    assert PerformanceModel(ADDITIVE, scale=2.0).step_s(shape) == 2 * PerformanceModel(ADDITIVE).step_s(shape)
    assert PerformanceModel(ADDITIVE).step_s(StepShape()) == 0.0


def test_a_roofline_takes_the_larger_cost() -> None:
    model = PerformanceModel(ROOFLINE)
    assert model.decode_step_s(1, 1000) == pytest.approx(0.016)
    assert model.decode_step_s(400, 1000) == pytest.approx(0.001 + 400 * 1e-4)
    assert model.decode_step_s(0, 0) == 0.0


def test_every_term_of_both_costs_of_a_roofline_counts() -> None:
    """Either cost alone sets the time when the other is nothing: seven figures, each a power of ten of its own."""
    terms = (1e0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
    shape = StepShape(2, 3, 4.0, 5, 6, 7, 8)
    expected_s = 1e0 + 9 * 1e-2 + 7 * 1e-4 + 7 * 1e-6 + 4 * 1e-8 + 8 * 1e-10
    for vector in ((*terms, *[0.0] * 6), (*[0.0] * 6, *terms)):
        coefficients = ROOFLINE.with_costs(StepCost(*vector[:6]), StepCost(*vector[6:]))
        assert coefficients.vector() == vector
        model = PerformanceModel(coefficients, scale=3.0, margins=(2.0, 5.0, 7.0))
        assert model.step_s(shape) == pytest.approx(15.0 * expected_s, rel=1e-13)
        assert model.decode_step_s(4, 50) == pytest.approx(6.0 * (1 + 4e-2 + 4e-4 + 50e-6), rel=1e-13)
        assert model.prefill_s(10, 8, 2) == pytest.approx(21.0 * (1 + 8e-2 + 1e-4 + 8 * 6 * 1e-8), rel=1e-13)
        batch_s = 2 * (1 + 3e-4) + 12e-2 + 600e-8
        assert model.prefill_batch_s(3, 12, 600.0, 8) == pytest.approx(21.0 * batch_s, rel=1e-13)


def test_figures_can_be_replaced_and_scaled() -> None:
    assert StepCost(1.0, 2.0, 3.0, 4.0, 5.0, 6.0).scaled(2.0) == StepCost(2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    compute, memory = StepCost(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), StepCost(7.0, 8.0, 9.0, 10.0, 11.0, 12.0)
    replaced = ROOFLINE.with_costs(compute, memory)
    assert (replaced.compute, replaced.memory) == (compute, memory)
    assert (replaced.origin, replaced.form) == ("fitted", StepForm.ROOFLINE)


def test_prefill_is_the_sum_of_its_steps() -> None:
    model = PerformanceModel(ROOFLINE)
    steps = [StepShape(1, 512, 512 * 256.0), StepShape(1, 488, 488 * (512 + 244.0))]
    assert model.prefill_s(1000, 512) == pytest.approx(sum(model.step_s(step) for step in steps))
    assert model.prefill_s(1000, 512, cached_tokens=512) == pytest.approx(model.step_s(steps[1]))
    assert model.prefill_s(1000, 512, cached_tokens=1000) == 0.0
    assert PerformanceModel(ADDITIVE).prefill_batch_s(1, 1000, 5e5, 500) == pytest.approx(
        2 * (0.010 + 1e-4) + 1000 * 1e-3 + 5e5 * 1e-8
    )
    assert model.prefill_batch_s(0, 0, 0.0, 512) == 0.0


@pytest.mark.parametrize(
    ("shape", "regime"),
    [
        (StepShape(decode_requests=1, decode_tokens=1), StepRegime.DECODE),
        (StepShape(prefill_requests=1, prefill_tokens=9), StepRegime.PREFILL),
        (StepShape(1, 9, 40.0, 1, 1, 5), StepRegime.MIXED),
    ],
)
def test_margins_apply_to_their_regime(shape: StepShape, regime: StepRegime) -> None:
    margins = [1.0, 1.0, 1.0]
    margins[regime] = 1.5
    model = PerformanceModel(ADDITIVE)
    bound = replace(model, margins=(margins[0], margins[1], margins[2]))
    assert shape.regime is regime
    assert bound.step_s(shape) == pytest.approx(1.5 * model.step_s(shape))


@given(SHAPES)
def test_compiled_code_gets_the_same_from_the_array(shape: StepShape) -> None:
    for coefficients in (ADDITIVE, ROOFLINE):
        model = PerformanceModel(coefficients, 1.25, (1.1, 1.2, 1.3))
        array = model.array()
        assert array.shape == (VECTOR_LENGTH,)
        _, tokens, requests, context, pairs, drafts = shape.regressors()
        compiled_s = _compiled(array, tokens, requests, context, pairs, drafts, int(shape.regime))
        assert compiled_s == pytest.approx(model.step_s(shape) if shape.tokens else compiled_s)


_compiled = numba.njit(step_time_s)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    [
        "overhead_s",
        "per_token_s",
        "per_context_token_s",
        "per_attention_pair_s",
        "per_request_s",
        "per_draft_step_s",
    ],
)
def test_no_negative_or_infinite_costs(name: str, value: float) -> None:
    costs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=name):
        replace(SMOLLM2_135M_ONE_CORE, **costs)


def test_the_additive_form_has_no_memory_cost() -> None:
    with pytest.raises(ValueError, match="additive"):
        replace(ADDITIVE, memory=StepCost(base_s=1e-3))


@pytest.mark.parametrize("coefficients", [ADDITIVE, ROOFLINE, SMOLLM2_135M_ONE_CORE])
def test_both_forms_survive_the_wire(coefficients: PerformanceCoefficients) -> None:
    message = coefficients_to_wire(coefficients)
    read = worker_pb2.PerformanceCoefficients.FromString(message.SerializeToString())
    assert coefficients_from_wire(read) == coefficients


def test_bad_coefficients_are_refused() -> None:
    message = coefficients_to_wire(ROOFLINE)
    message.memory.base_s = math.nan
    with pytest.raises(wire.WireError, match="base_s"):
        coefficients_from_wire(message)
    message = coefficients_to_wire(ADDITIVE)
    message.form = 17  # type: ignore[assignment]
    with pytest.raises(wire.WireError, match="form"):
        coefficients_from_wire(message)
    old = worker_pb2.PerformanceCoefficients(overhead_s=0.1, origin="measured")
    assert coefficients_from_wire(old).form is StepForm.ADDITIVE
