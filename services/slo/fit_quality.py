"""The quality of a performance model: how well it predicts steps that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceModel, StepRegime, StepShape


@dataclass(frozen=True, slots=True)
class FitQuality:
    """Figures of how well predictions matched observed step times."""

    steps: int
    """Number of steps judged."""
    r2: float
    """Coefficient of determination of step times: 1 is perfect, 0 no better than their mean."""
    mape: float
    """Mean absolute error of the expected time relative to the observed one."""
    coverage: float
    """Share of steps that took no longer than the bound."""
    coverage_by_regime: Mapping[StepRegime, float]
    """Coverage of each regime of which steps were judged."""


Row = tuple[StepShape, float]
"""A step and the seconds it took."""


def quality(rows: Iterable[Row], mean: PerformanceModel, bound: PerformanceModel) -> FitQuality:
    """Judge two fixed models, one for expected times and one for bounds.

    Raises:
        ValueError: there are no rows.
    """
    return _quality([(shape, took_s, mean.step_s(shape), bound.step_s(shape)) for shape, took_s in rows])


def replay(fit: StepTimeFit, rows: Iterable[Row], coverage: float) -> FitQuality:
    """Let `fit` learn from the steps in turn, and judge what it predicted for each before it saw it.

    Args:
        coverage: probability of the bounds that are judged.

    Raises:
        ValueError: there are no rows, or coverage is not between 0 and 1.
    """
    judged = []
    for shape, took_s in rows:
        judged.append((shape, took_s, fit.model().step_s(shape), fit.bound(coverage).step_s(shape)))
        fit.observe(shape, took_s)
    return _quality(judged)


def _quality(judged: list[tuple[StepShape, float, float, float]]) -> FitQuality:
    if not judged:
        raise ValueError("no steps to judge by")
    took_s, expected_s, bound_s = (np.array([row[column] for row in judged]) for column in (1, 2, 3))
    within = took_s <= bound_s
    variance = float(((took_s - took_s.mean()) ** 2).sum())
    regimes = np.array([row[0].regime for row in judged])
    return FitQuality(
        steps=len(judged),
        r2=1.0 - float(((took_s - expected_s) ** 2).sum()) / variance if variance > 0 else 0.0,
        mape=float(np.mean(np.abs(took_s - expected_s) / took_s)),
        coverage=float(within.mean()),
        coverage_by_regime={
            regime: float(within[regimes == regime].mean()) for regime in StepRegime if (regimes == regime).any()
        },
    )
