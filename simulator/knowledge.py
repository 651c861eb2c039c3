"""What ours knows of step times and output lengths, before the first step and after: what an experiment changes."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from services.slo.admission import StepTimes
from services.slo.fitting import StepTimeFit
from services.slo.lengths import LengthForecast
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepShape
from simulator.machine import Machine


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known before the first step."""

    error: float = 0.1
    """Step times are taken for this much longer than they are; negative: shorter."""
    learns: bool = True
    """Whether step times are learnt from the steps taken. Otherwise the error stays, and only their spread is known."""
    lengths: bool = False
    """Whether output lengths are known in advance."""


def prior_of(machine: Machine, knowledge: Knowledge) -> PerformanceCoefficients:
    """Return what a worker's step times are taken for before its first step."""
    truth = machine.truth.coefficients
    factor = 1.0 + knowledge.error
    return truth.with_costs(truth.compute.scaled(factor), truth.memory.scaled(factor))


def step_times(machine: Machine, knowledge: Knowledge) -> StepTimes:
    """Return the step times of one worker as ours knows them: learnt as in the product, unless told otherwise."""
    prior = prior_of(machine, knowledge)
    return StepTimeFit(prior) if knowledge.learns else FixedStepTimes(PerformanceModel(prior), machine.noise)


class FixedStepTimes:
    """Step times that no step changes. Satisfies `StepTimes`."""

    def __init__(self, model: PerformanceModel, noise: float) -> None:
        """Bound the steps of a model.

        Args:
            noise: standard deviation of a step's time relative to its mean, taken to be normally distributed.
        """
        self._model = model
        self._noise = noise
        self._bounds: dict[float, PerformanceModel] = {}

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Ignore a step."""

    def model(self) -> PerformanceModel:
        """Return the expected step times."""
        return self._model

    def bound(self, coverage: float) -> PerformanceModel:
        """Return step times that steps keep with this probability."""
        if coverage not in self._bounds:
            margin = 1 + self._noise * NormalDist().inv_cdf(coverage)
            coefficients = self._model.coefficients
            self._bounds[coverage] = PerformanceModel(coefficients, margins=(margin, margin, margin))
        return self._bounds[coverage]

    def bound_s(self, coverage: float, shape: StepShape) -> float:
        """Return the bound of one step in seconds."""
        return self.bound(coverage).step_s(shape)


class KnownLengths:
    """Output lengths that are known in advance. Satisfies `LengthForecasts`."""

    def observe(self, tenant: str, application: str, tokens: int, *, complete: bool) -> None:
        """Ignore an output: there is nothing to learn."""

    def forecast(
        self,
        tenant: str,
        application: str,
        coverage: float,
        limit_tokens: int,
        produced_tokens: int = 0,
        hint_tokens: int | None = None,
    ) -> LengthForecast:
        """Return the length that is known, given as the hint.

        Raises:
            ValueError: there is no hint.
        """
        if hint_tokens is None:
            raise ValueError(f"the length of an output of {application!r} is not known")
        return LengthForecast(float(hint_tokens), 0.0, hint_tokens)
