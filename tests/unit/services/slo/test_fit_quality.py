"""Figures of how well step times are predicted."""

from __future__ import annotations

import pytest

from services.slo.fit_quality import quality, replay
from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepRegime, StepShape

MODEL = PerformanceModel(PerformanceCoefficients(0.0, 0.001, 0.0, 0.0, "measured"))
"""A step of n tokens takes n milliseconds."""
BOUND = PerformanceModel(MODEL.coefficients, margins=(1.5, 1.5, 1.5))


def decodes(requests: int) -> StepShape:
    return StepShape(decode_requests=requests, decode_tokens=requests)


def test_figures_are_those_of_their_definitions() -> None:
    rows = [(decodes(100), 0.100), (decodes(100), 0.125), (StepShape(1, 100), 0.200), (decodes(200), 0.300)]
    judged = quality(rows, MODEL, BOUND)
    assert judged.steps == 4
    assert judged.mape == pytest.approx((0 + 0.2 + 0.5 + 1 / 3) / 4)
    assert judged.coverage == 0.75, "0.300 s is just within 1.5 times 0.2 s"
    assert judged.coverage_by_regime == {StepRegime.DECODE: 1.0, StepRegime.PREFILL: 0.0}
    mean_s = 0.725 / 4
    variance = sum((took_s - mean_s) ** 2 for _, took_s in rows)
    assert judged.r2 == pytest.approx(1 - (0.025**2 + 0.1**2 + 0.1**2) / variance)


def test_steps_that_all_took_as_long_have_nothing_to_explain() -> None:
    assert quality([(decodes(100), 0.125)] * 4, MODEL, BOUND).r2 == 0.0


def test_a_replay_judges_each_step_before_it_is_learnt() -> None:
    """The first step is twice as long as the prior says, and only that one is a surprise of 50 %."""
    fit = StepTimeFit(PerformanceCoefficients(0.01, 0.001, 0.0, 0.0, "measured"))
    first = replay(fit, [(decodes(100), 0.22)], 0.95)
    assert first.mape == pytest.approx(0.5)
    assert first.coverage == 0.0
    assert fit.steps == 1
    assert replay(fit, [(decodes(100), 0.22)], 0.95).mape < 0.45
