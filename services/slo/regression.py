"""Statistics that models learnt online share: a regression on relative error, and quantiles of recent ratios."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

NOISE = 0.1
"""Standard deviation of one observation relative to itself, by which the regression weighs it against its prior
(chosen; docs/reports/validity.md finds 5 to 20 %)."""
EAGER_UPDATES = 100
"""Number of first observations after each of which the coefficients are solved for."""
LAZY_STRIDE = 4
"""Number of later observations per solution: a solution costs more than an update, and coefficients move little."""

SHORTEST_S, LONGEST_S = 1e-7, 3600.0
"""Shortest and longest duration that is believed: below a clock's resolution or above an hour it is a defect."""


def credible(duration_s: float) -> bool:
    """Return whether a step or a transfer can have taken that long, so that it is no defect of a clock or a report."""
    return SHORTEST_S <= duration_s <= LONGEST_S


class RelativeRegression:
    """A linear regression with non-negative coefficients that minimises relative error and forgets towards its prior.

    It is recursive least squares with exponential forgetting, in information form. Forgetting goes towards the prior,
    so that a coefficient that is not observed any more returns to it instead of becoming arbitrary. The prior holds
    that all coefficients may be off by a common factor, so that what is observed also moves what is not. Owned by one
    caller; not safe for use from several threads.
    """

    __slots__ = ("_information", "_prior_information", "_prior_target", "_solution", "_target", "_units", "_updates")

    def __init__(self, prior: Sequence[float], units: Sequence[float], own_spread: float, common_spread: float) -> None:
        """
        Args:
            prior: coefficients before any observation, shape (terms,).
            units: positive sizes in which each coefficient is measured, shape (terms,): the prior itself where it is
            not 0.
            own_spread: standard deviation of each coefficient around its prior, in its unit.
            common_spread: standard deviation of a factor on all of them.
        """
        self._units = np.array(units, dtype=np.float64)
        start = np.array(prior, dtype=np.float64) / self._units
        covariance = own_spread**2 * np.eye(len(start)) + common_spread**2 * np.outer(start, start)
        self._prior_information: NDArray[np.float64] = np.linalg.inv(covariance)
        self._prior_target: NDArray[np.float64] = self._prior_information @ start
        self._information = self._prior_information.copy()
        self._target = self._prior_target.copy()
        self._solution: NDArray[np.float64] = start
        self._updates = 0

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """Coefficients as they were solved for last, shape (terms,)."""
        result: NDArray[np.float64] = self._solution * self._units
        return result

    def predict(self, regressors: NDArray[np.float64]) -> float:
        """Return what is expected for these regressors, shape (terms,)."""
        return float(regressors @ (self._solution * self._units))

    def update(self, regressors: NDArray[np.float64], ratio: float, keep: float) -> None:
        """Learn from one observation.

        Args:
            regressors: shape (terms,).
            ratio: observed over predicted, with outliers already clipped. The prediction must be positive.
            keep: factor on everything learnt so far, at most 1; below 1 the regression forgets.
        """
        shares: NDArray[np.float64] = regressors * self._units
        shares /= float(shares @ self._solution)
        weight = 1.0 / NOISE**2
        self._information = (
            keep * self._information + (1.0 - keep) * self._prior_information + np.outer(weight * shares, shares)
        )
        self._target = keep * self._target + (1.0 - keep) * self._prior_target + weight * ratio * shares
        self._updates += 1
        if self._updates <= EAGER_UPDATES or self._updates % LAZY_STRIDE == 0:
            self.solve()

    def solve(self) -> None:
        """Solve for the coefficients that the observations so far imply."""
        self._solution = _nonnegative_solution(self._information, self._target)

    def rescale(self, factor: float) -> None:
        """Multiply every coefficient by `factor`, when everything has become slower or faster at once."""
        self._solution = np.multiply(self._solution, factor)
        self._target = np.asarray(self._information @ self._solution, dtype=np.float64)


def _nonnegative_solution(information: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the minimiser of x' A x / 2 - b' x over x >= 0 for a positive definite A, by an active-set method.

    Terms that come out negative leave, and terms that would improve the fit come back, as in Lawson and Hanson's
    non-negative least squares. A handful of rounds settles it for so few terms; rounds are bounded all the same, and
    what is negative after the last is set to 0.

    Args:
        information: A, shape (terms, terms).
        target: b, shape (terms,).
    """
    solution = np.asarray(np.linalg.solve(information, target), dtype=np.float64)
    if (solution >= 0).all():
        return solution
    free = solution > 0
    for _ in range(2 * len(target)):
        inside = np.flatnonzero(free)
        solution = np.zeros_like(target)
        solution[inside] = np.linalg.solve(information[np.ix_(inside, inside)], target[inside])
        gradient = information @ solution - target
        negative = free & (solution < 0)
        wanted = ~free & (gradient < -1e-9 * np.abs(target))
        if not negative.any() and not wanted.any():
            break
        if negative.any():
            free &= ~negative
        else:
            free[int(np.argmin(np.where(wanted, gradient, np.inf)))] = True
    return np.maximum(solution, 0.0)


def spread_of(ordered: Sequence[float]) -> float:
    """Return a standard deviation that outliers do not reach: half the width of the middle two thirds of sorted values.

    Of a normal distribution 68 % lie within one standard deviation of the mean, between its quantiles 0.159 and 0.841.

    Args:
        ordered: at least one value.
    """
    last = len(ordered) - 1
    return (ordered[round(0.841 * last)] - ordered[round(0.159 * last)]) / 2


class RatioWindow:
    """The latest ratios of observed over predicted, whose quantiles bound the next one.

    This is a conformal bound: whatever the distribution of ratios, the next one is below the q-quantile of the latest
    with
    probability q, if it is one more of the same kind. The window starts with made-up ratios that stand for what is
    expected before anything is seen; real ones push them out. The rank that each ratio had among those before it is
    kept too. Where ranks turn out uneven, because things change while they are observed, another quantile than the
    nominal one is the one that holds, and `quantile` takes that.
    """

    __slots__ = ("_horizon_s", "_keep", "_newest", "_newest_ranks", "_ranks", "_sorted")

    def __init__(self, spread: float, length: int, horizon_s: float = math.inf, at_least: int = 64) -> None:
        """
        Args:
            spread: standard deviation of the logarithm of the made-up ratios.
            length: largest number of ratios kept.
            horizon_s: age in seconds, on the clock of `add`, beyond which a ratio is forgotten.
            at_least: number of ratios that are kept however old they are.
        """
        made_up = 20
        normal = NormalDist(0.0, spread) if spread > 0 else None
        ratios = [
            1.0 if normal is None else math.exp(normal.inv_cdf((index + 0.5) / made_up)) for index in range(made_up)
        ]
        # Their order of leaving must not favour small or large ones.
        order = [ratios[(7 * index) % made_up] for index in range(made_up)]
        self._newest: deque[tuple[float, float]] = deque(((-math.inf, ratio) for ratio in order), maxlen=None)
        self._sorted = sorted(ratios)
        ranks = [((7 * index) % made_up + 0.5) / made_up for index in range(made_up)]
        self._newest_ranks = deque(ranks)
        self._ranks = sorted(ranks)
        self._keep = (length, max(1, at_least))
        self._horizon_s = horizon_s

    def __len__(self) -> int:
        return len(self._newest)

    def add(self, ratio: float, at_s: float = 0.0) -> None:
        """Take in a ratio observed at `at_s`, and forget the oldest."""
        length, at_least = self._keep
        self._add_rank((bisect.bisect_left(self._sorted, ratio) + 0.5) / (len(self._sorted) + 1), length)
        self._newest.append((at_s, ratio))
        bisect.insort(self._sorted, ratio)
        while len(self._newest) > length or (
            len(self._newest) > at_least and self._newest[0][0] < at_s - self._horizon_s
        ):
            self._forget(self._newest.popleft()[1])

    def drop_newest(self, count: int) -> None:
        """Forget the latest ratios, because the model that they judge was replaced."""
        for _ in range(min(count, len(self._newest) - 1)):
            self._forget(self._newest.pop()[1])

    def quantile(self, coverage: float) -> float:
        """Return the ratio that the next one exceeds with probability `1 - coverage`, if it is one more of the same
        kind.

        The rank counts the next one in, so that short windows do not promise too much.

        Raises:
            ValueError: coverage is not between 0 and 1.
        """
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage must lie between 0 and 1; got {coverage}")
        return _quantile(self._sorted, _quantile(self._ranks, coverage))

    @property
    def only_seen(self) -> bool:
        """Whether every ratio was observed, and no made-up one is left."""
        return self._newest[0][0] > -math.inf

    def largest_seen(self) -> float:
        """Return the largest ratio observed that is kept; 0 if there is none."""
        return max((ratio for at_s, ratio in self._newest if at_s > -math.inf), default=0.0)

    def spread(self) -> float:
        """Return the standard deviation of the ratios kept; see `spread_of`."""
        return spread_of(self._sorted)

    def mean_error(self) -> float:
        """Return the mean absolute error of the predictions relative to what was observed; 0 before anything was."""
        # Copied at once: metrics are read by another thread.
        errors = [abs(1.0 - 1.0 / ratio) for at_s, ratio in list(self._newest) if at_s > -math.inf]
        return sum(errors) / len(errors) if errors else 0.0

    def _add_rank(self, rank: float, length: int) -> None:
        self._newest_ranks.append(rank)
        bisect.insort(self._ranks, rank)
        if len(self._newest_ranks) > length:
            del self._ranks[bisect.bisect_left(self._ranks, self._newest_ranks.popleft())]

    def _forget(self, ratio: float) -> None:
        del self._sorted[bisect.bisect_left(self._sorted, ratio)]


def _quantile(ordered: list[float], level: float) -> float:
    """Return the value of that rank among sorted ones, where the rank counts the next value in."""
    rank = math.ceil(level * (len(ordered) + 1) - 1e-9)
    return ordered[min(max(rank, 1), len(ordered)) - 1]


class ShiftDetector:
    """Notices when observations are off to the same side for a while, because what is observed has changed for good."""

    __slots__ = ("_latest", "_limit")

    def __init__(self, length: int, limit: float) -> None:
        """
        Args:
            length: number of latest observations that are looked at.
            limit: standard deviations by which half of them must be off to the same side.
        """
        self._latest: deque[tuple[float, float, NDArray[np.float64]]] = deque(maxlen=length)
        self._limit = limit

    def add(self, regressors: NDArray[np.float64], observed: float, deviation: float) -> bool:
        """Take in an observation, and return whether things have changed, in which case `follow` makes up for it.

        Args:
            regressors: shape (terms,).
            deviation: of what was observed from its prediction, in standard deviations.
        """
        self._latest.append((deviation, observed, regressors))
        if len(self._latest) < (self._latest.maxlen or 0):
            return False
        deviations = sorted(deviation for deviation, _, _ in self._latest)
        return abs(deviations[len(deviations) // 2]) >= self._limit

    def follow(self, regression: RelativeRegression) -> None:
        """Scale the regression so that it fits the latest observations, what it has learnt of them included."""
        ratios = sorted(observed / regression.predict(regressors) for _, observed, regressors in self._latest)
        regression.rescale(ratios[len(ratios) // 2])
        self._latest.clear()
