"""What a planner believes of step times: never the truth, but a guess that steps correct, or one that stays wrong."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceModel, StepRegime, StepShape
from simulator.machine import Machine

PLANNED_COVERAGE, COMPOSED_COVERAGE = 0.99, 0.95
"""Part of the steps that keep the bounds of the planner and of the engine: the defaults of router and engines."""
OBSERVED_AT_FIRST, OBSERVED_LATER = 300, 16
"""Steps that are learnt from one by one; then one of so many is, to save time: the machine does not change."""
REFRESH_STEPS = 50
REFRESH_S = 5.0
"""How long a bound serves before it is asked for again."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known before the first step."""

    error: float = 0.1
    """Step times are taken for this much longer than they are; negative: shorter."""
    learns: bool = True
    """From the steps taken. Otherwise the error stays, and only the spread of step times is known."""
    lengths: bool = False
    """Output lengths are known in advance."""


class Belief:
    """Of one kind of worker. Bounds are objects that stay the same while they are believed."""

    def __init__(self, machine: Machine, knowledge: Knowledge) -> None:
        truth = machine.truth.coefficients
        factor = 1.0 + knowledge.error
        guess = truth.with_costs(truth.compute.scaled(factor), truth.memory.scaled(factor))
        self._learns = knowledge.learns
        self._fit = StepTimeFit(guess)
        self._seen = 0
        self._refreshed_s = 0.0
        if knowledge.learns:
            self._refresh()
        else:
            self.model = PerformanceModel(guess)
            self.planning, self.composing = (
                PerformanceModel(guess, margins=(margin, margin, margin))
                for margin in (
                    1 + machine.noise * NormalDist().inv_cdf(c) for c in (PLANNED_COVERAGE, COMPOSED_COVERAGE)
                )
            )

    def observe(self, shape: StepShape, took_s: float, now_s: float) -> None:
        if not self._learns:
            return
        self._seen += 1
        if self._seen > OBSERVED_AT_FIRST and self._seen % OBSERVED_LATER and shape.regime is StepRegime.DECODE:
            return
        self._fit.observe(shape, took_s)
        at_first = self._seen <= OBSERVED_AT_FIRST and self._seen % REFRESH_STEPS == 0
        if at_first or (self._seen > OBSERVED_AT_FIRST and now_s - self._refreshed_s > REFRESH_S):
            self._refreshed_s = now_s
            self._refresh()

    def _refresh(self) -> None:
        self.model = self._fit.model()
        self.planning, self.composing = self._fit.bound(PLANNED_COVERAGE), self._fit.bound(COMPOSED_COVERAGE)
