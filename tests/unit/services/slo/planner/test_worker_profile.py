"""The planner's bound of the step time is never below the model it was made from."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepCost, StepForm, StepShape
from services.slo.planner.worker_profile import StepBound, Tiers, WorkerProfile

seconds = st.floats(min_value=0, max_value=0.1)
counts = st.integers(min_value=0, max_value=4000)


def cost(terms: list[float]) -> StepCost:
    return StepCost(*terms)


costs = st.lists(seconds, min_size=6, max_size=6).map(cost)
plain_memory = st.tuples(seconds, seconds).map(lambda pair: StepCost(base_s=pair[0], per_context_token_s=pair[1]))


def bound_s(bound: StepBound, shape: StepShape) -> float:
    work_s = (
        bound.per_token_s * shape.tokens
        + bound.per_request_s * shape.requests
        + bound.per_attention_pair_s * shape.prefill_attention_pairs
    )
    compute_s = work_s + bound.per_context_token_s * shape.decode_context_tokens
    memory_s = (
        bound.memory_s + bound.memory_per_work * work_s + bound.memory_per_context_token_s * shape.decode_context_tokens
    )
    return bound.overhead_s + bound.per_draft_step_s * shape.draft_steps + max(compute_s, memory_s)


@given(
    compute=costs,
    memory=st.one_of(costs, plain_memory),
    form=st.sampled_from(StepForm),
    prefill_tokens=counts,
    decodes=counts,
    context_tokens=counts,
    margin=st.floats(min_value=1, max_value=2),
)
def test_the_bound_is_never_below_the_model(
    compute: StepCost,
    memory: StepCost,
    form: StepForm,
    prefill_tokens: int,
    decodes: int,
    context_tokens: int,
    margin: float,
) -> None:
    base = PerformanceCoefficients(0.0, 0.0, 0.0, 0.0, "placeholder", form=form)
    compute = StepCost(*(max(term, 1e-9) for term in compute.vector()))
    coefficients = base.with_costs(compute, memory if form is StepForm.ROOFLINE else StepCost())
    model = PerformanceModel(coefficients, 1.1, (margin, margin, margin))
    shape = StepShape(
        prefill_requests=min(prefill_tokens, 3),
        prefill_tokens=prefill_tokens,
        prefill_attention_pairs=prefill_tokens**2 / 2,
        decode_requests=decodes,
        decode_tokens=decodes,
        decode_context_tokens=context_tokens,
    )
    assert bound_s(StepBound.of(model), shape) >= model.step_s(shape) * (1 - 1e-9)


def test_bad_profiles_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        StepBound(math.nan, 1e-3)
    with pytest.raises(ValueError, match="per_token_s"):
        StepBound(1e-3, 0.0)
    with pytest.raises(ValueError, match="ascend"):
        Tiers((0.1, 0.05))
    with pytest.raises(ValueError, match="tiers"):
        Tiers(())
    with pytest.raises(ValueError, match="acceptance"):
        Tiers((0.1,), (1.0,), 2)
    with pytest.raises(ValueError, match="max_step_tokens"):
        WorkerProfile(StepBound(1e-3, 1e-3), Tiers((0.1,)), 0)


def test_a_worker_is_judged_by_the_margins_of_the_steps_that_it_takes() -> None:
    model = PerformanceModel(PerformanceCoefficients(0.010, 1e-4, 0.0, 0.0, "measured"), margins=(1.5, 1.7, 1.2))
    assert StepBound.of(model, decodes=False).overhead_s == pytest.approx(0.012)
    assert StepBound.of(model, prefills=False).overhead_s == pytest.approx(0.015)
    assert StepBound.of(model).overhead_s == pytest.approx(0.017)
