"""The performance model of one worker, learnt online from the steps that it reports.

docs/explanation/planning-mathematics.md, section 2, has the mathematics. The constants were tuned on recorded and
simulated steps (`slos-serve bench steps`; tests/unit/services/slo/test_fitting.py holds them to it).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.slo.performance import (
    NO_COST,
    TERMS,
    PerformanceCoefficients,
    PerformanceModel,
    StepCost,
    StepForm,
    StepRegime,
    StepShape,
)
from services.slo.regression import RatioWindow, RelativeRegression, ShiftDetector, credible

Floats = NDArray[np.float64]

MEMORY_S = 30.0
"""Busy time in seconds after which a step counts a third (1 / e) in the coefficients."""
SLOWEST_FORGETTING, FASTEST_FORGETTING = 5e-4, 1e-2
"""Smallest and largest part of what is learnt that one step makes the regression forget."""
SCALE_WEIGHT = 0.05
"""Weight of the newest step in the scale, which follows the machine faster than the coefficients can."""
WINDOW_STEPS, WINDOW_S = 500, 60.0
"""Largest number of steps, and busy time in seconds, over which errors are judged."""
OUTLIER = 2.5
"""Standard deviations from what is expected beyond which the rest of a step's deviation does not count."""
UNFAMILIAR_STEPS, UNFAMILIAR_FACTOR = 8, 4.0
"""Number of first steps of a regime that count in full, and the factor by which they may be off: a prior measured on
another machine is no ground to call them outliers."""
SMALLEST_SPREAD = 0.02
"""Smallest standard deviation of step times relative to what is expected that outliers are judged by."""
SHIFT_STEPS = 8
"""Number of latest steps that show that the machine has changed, if half are off by more than `OUTLIER` to one side."""
OWN_SPREAD = {"measured": 0.3, "fitted": 0.3}
"""Standard deviation of each coefficient of the prior relative to itself, by its origin."""
OTHER_SPREAD = 1.0
"""Standard deviation of each coefficient of a prior of another origin, relative to itself."""
PRIOR_ERROR = {"measured": 0.1, "fitted": 0.15}
"""Relative error of step times that bounds allow for until steps were seen, by the prior's origin."""
OTHER_ERROR = 0.3
"""Relative error that bounds allow for with a prior of another origin."""
MIXED_SURPLUS = 1.15
"""Factor by which the bound of prefill steps exceeds what mixed steps show, where too few prefill steps were seen. In
simulation promises were kept as often with it as with the prior's error, which can be twice as much; with 1.0 to 1.08
fewer were."""
REFERENCE = StepShape(
    prefill_requests=1,
    prefill_tokens=256,
    prefill_attention_pairs=65_536.0,
    decode_requests=16,
    decode_tokens=16,
    decode_context_tokens=8192,
    draft_steps=4,
)
"""A typical step. A term that the prior does not have is measured in units that make it a tenth of this step's time."""
_COMPUTE_TERMS, _MEMORY_TERMS = (0, 1, 2, 4, 5), (0, 3, 5)
"""Terms of a roofline's compute and memory cost that are learnt even if the prior has nothing: only memory cost depends
on the context of decodes, and only compute cost on attention pairs."""
_SMALLEST_OVERHEAD_S = 1e-5
"""Smallest overhead of a step in the prior, so that it can be learnt."""


class StepTimeFit:
    """Learns the step times of one worker from its steps, and bounds on them of known coverage.

    Coefficients come from a regression that forgets; a scale follows the machine from step to step; a sudden lasting
    change (another process on the same cores) resets both within `SHIFT_STEPS` steps. Bounds are quantiles of recent
    observed over expected times, kept apart by regime so that they hold in each. Owned by one event loop.
    """

    def __init__(self, prior: PerformanceCoefficients) -> None:
        self._prior = prior
        self._regression, self._terms = _regression(prior)
        self._scale = 1.0
        error = PRIOR_ERROR.get(prior.origin, OTHER_ERROR)
        self._windows = tuple(RatioWindow(error, WINDOW_STEPS, WINDOW_S) for _ in StepRegime)
        self._shift = ShiftDetector(SHIFT_STEPS, OUTLIER)
        self._latest: deque[StepRegime] = deque(maxlen=SHIFT_STEPS)
        self._seen = dict.fromkeys(StepRegime, 0)
        self._busy_s = 0.0
        self._prior_model = PerformanceModel(prior)
        self._model: PerformanceModel | None = self._prior_model
        """Model of expected times; None until asked for, because steps come more often than questions."""
        self._bounds: dict[float, PerformanceModel] = {}
        self.steps = 0
        """Number of steps learnt from."""
        self.scale = 1.0
        """Ratio of recent observed step times to those of the prior."""

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Learn from a step that took `duration_s`; ignore one without tokens or without credible figures."""
        if not shape.tokens or not credible(duration_s) or not math.isfinite(shape.prefill_attention_pairs):
            return
        regressors = self._regressors(shape)
        expected_s = self._scale * self._regression.predict(regressors)
        if expected_s <= 0:
            return
        ratio = duration_s / expected_s
        window = self._windows[shape.regime]
        spread = max(SMALLEST_SPREAD, window.spread())
        self._busy_s += duration_s
        self.steps += 1
        self._latest.append(shape.regime)
        clipped = min(1.0 + OUTLIER * spread, max(1.0 - OUTLIER * spread, ratio))
        unfamiliar = self._seen[shape.regime] < UNFAMILIAR_STEPS
        if unfamiliar:
            clipped = min(UNFAMILIAR_FACTOR, max(1.0 / UNFAMILIAR_FACTOR, ratio))
            self._seen[shape.regime] += 1
        forgetting = min(FASTEST_FORGETTING, max(SLOWEST_FORGETTING, duration_s / MEMORY_S))
        self._regression.update(regressors, clipped * self._scale, 1.0 - forgetting)
        self._scale *= 1.0 + SCALE_WEIGHT * (clipped - 1.0)
        # How far a prior from another machine was off is no error to expect of the next step: where steps of a regime
        # are rare it would stay in the bounds for long.
        judged_s = self._scale * self._regression.predict(regressors) if unfamiliar else expected_s
        window.add(duration_s / judged_s, self._busy_s)
        if self._shift.add(regressors, duration_s, (ratio - 1.0) / spread):
            self._start_anew()
        self._model = None
        self._bounds.clear()
        prior_s = self._prior_model.step_s(shape)
        if prior_s > 0:
            self.scale += SCALE_WEIGHT * (clipped * expected_s / prior_s - self.scale)

    def model(self) -> PerformanceModel:
        """Return the model of expected step times."""
        if self._model is None:
            coefficients = _with_costs(self._prior, _costs(self._regression, self._terms))
            self._model = PerformanceModel(coefficients, self._scale)
        return self._model

    def bound(self, coverage: float) -> PerformanceModel:
        """Return a model of step times that steps of each regime keep with probability `coverage`.

        A mixed step has every cost of a prefill: where only mixed ones were seen often, they and the few prefills seen
        say more about the next prefill than the error that the prior was given.

        Raises:
            ValueError: coverage is not between 0 and 1.
        """
        if coverage not in self._bounds:
            model = self.model()
            self._bounds[coverage] = PerformanceModel(model.coefficients, model.scale, self._margins(coverage))
        return self._bounds[coverage]

    def bound_s(self, coverage: float, shape: StepShape) -> float:
        """Return `bound(coverage).step_s(shape)`, without making a model that is asked for one step only.

        Raises:
            ValueError: coverage is not between 0 and 1.
        """
        if not shape.tokens:
            return 0.0
        expected_s = self._scale * self._regression.predict(self._regressors(shape))
        return self._margins(coverage)[shape.regime] * expected_s

    def _margins(self, coverage: float) -> tuple[float, float, float]:
        """Return the quantile of observed over expected times by regime, in the order of `StepRegime`."""
        decode, mixed, prefill = (window.quantile(coverage) for window in self._windows)
        in_prefill, in_mixed = self._windows[StepRegime.PREFILL], self._windows[StepRegime.MIXED]
        if in_mixed.only_seen and not in_prefill.only_seen:
            prefill = min(prefill, MIXED_SURPLUS * max(mixed, in_prefill.largest_seen()))
        return decode, mixed, prefill

    def _regressors(self, shape: StepShape) -> Floats:
        """Return the regressors of the terms that are learnt, shape (learnt terms,)."""
        active: Floats = _active(shape, self._prior.form, _costs(self._regression, self._terms))[self._terms]
        return active

    def error(self) -> float:
        """Return the mean absolute error of recent expected times relative to observed ones, over the regimes last
        seen.
        """
        # Copied at once: metrics are read by another thread.
        latest = list(self._latest)
        errors = [self._windows[regime].mean_error() for regime in set(latest)]
        return sum(errors) / len(errors) if errors else 0.0

    def _start_anew(self) -> None:
        """Follow a machine that has changed at once, and do not judge bounds by the steps that showed it."""
        for regime in StepRegime:
            self._windows[regime].drop_newest(self._latest.count(regime))
        self._shift.follow(self._regression)
        self._scale = 1.0


def _regression(
    prior: PerformanceCoefficients,
) -> tuple[RelativeRegression, NDArray[np.int64]]:
    """Return a regression that starts from these coefficients, and which of the 2 * TERMS costs it learns."""
    costs = list(prior.vector())
    costs[0] = max(costs[0], _SMALLEST_OVERHEAD_S)
    learnable = set(range(TERMS))
    if prior.form is StepForm.ROOFLINE:
        learnable = {*_COMPUTE_TERMS, *(TERMS + term for term in _MEMORY_TERMS)}
    terms = [term for term, cost_s in enumerate(costs) if cost_s > 0 or term in learnable]
    tenth_s = PerformanceModel(prior).step_s(REFERENCE) / 10 or _SMALLEST_OVERHEAD_S
    sizes = REFERENCE.regressors() * 2
    units = [costs[term] or tenth_s / sizes[term] for term in terms]
    own_spread = OWN_SPREAD.get(prior.origin, OTHER_SPREAD)
    regression = RelativeRegression([costs[term] for term in terms], units, own_spread, common_spread=1.0)
    return regression, np.array(terms, dtype=np.int64)


def fit_all(
    prior: PerformanceCoefficients, rows: Sequence[tuple[StepShape, float]], *, outliers: bool = True
) -> PerformanceCoefficients:
    """Return coefficients that fit all of these steps at once, for a profile.

    There are three passes. Each judges by the one before which steps are outliers, and which cost of a roofline sets
    the time of a step.

    Args:
        prior: coefficients to start from; they also say the form.
        rows: steps, and the seconds they took.
        outliers: whether steps may have been disturbed. If not, the few of a rare kind count in full.
    """
    costs = np.array(prior.vector())
    for _ in range(3):
        before = PerformanceModel(_with_costs(prior, costs))
        low, high = _credible_ratios([took_s / before.step_s(shape) for shape, took_s in rows], outliers=outliers)
        regression, terms = _regression(prior)
        for shape, took_s in rows:
            expected_s = before.step_s(shape)
            clipped_s = min(high * expected_s, max(low * expected_s, took_s))
            regressors = _active(shape, prior.form, costs)[terms]
            regression.update(regressors, clipped_s / regression.predict(regressors), keep=1.0)
        regression.solve()
        costs = _costs(regression, terms)
    return _with_costs(prior, costs)


def _credible_ratios(ratios: Sequence[float], *, outliers: bool) -> tuple[float, float]:
    """Return the smallest and the largest ratio of observed to expected times that are taken as they are."""
    if not outliers:
        return 0.0, math.inf
    ordered = sorted(ratios)
    middle = ordered[len(ordered) // 2]
    spread = max(SMALLEST_SPREAD, (ordered[int(0.84 * len(ordered))] - ordered[int(0.16 * len(ordered))]) / 2)
    return middle - OUTLIER * spread, middle + OUTLIER * spread


def _costs(regression: RelativeRegression, terms: NDArray[np.int64]) -> Floats:
    """Return the terms of both costs, shape (2 * TERMS,), with 0 for those that are not learnt."""
    costs = np.zeros(2 * TERMS)
    costs[terms] = regression.coefficients
    return costs


def _with_costs(prior: PerformanceCoefficients, costs: Floats) -> PerformanceCoefficients:
    """Return the prior with other costs, shape (2 * TERMS,)."""
    values = costs.tolist()
    memory = StepCost(*values[TERMS:]) if prior.form is StepForm.ROOFLINE else NO_COST
    return prior.with_costs(StepCost(*values[:TERMS]), memory)


def _active(shape: StepShape, form: StepForm, costs: Floats) -> Floats:
    """Return the regressors of both costs, shape (2 * TERMS,); those of a roofline's smaller cost are 0."""
    values = np.array(shape.regressors())
    both: Floats = np.concatenate((values, values))
    if form is StepForm.ROOFLINE:
        costs_s = both * costs
        if costs_s[:TERMS].sum() >= costs_s[TERMS:].sum():
            both[TERMS:] = 0.0
        else:
            both[:TERMS] = 0.0
    return both
