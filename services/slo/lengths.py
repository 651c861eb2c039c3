"""Forecasts of output lengths, learnt from requests that ended, per tenant and application.

Memory is promised for the tail of a request's length. The forecast is made again as the request goes on, given the
tokens it has, and memory that it turns out not to need is free for others. For many requests together `pooled_tail` is
far below the sum of their tails (docs/explanation/planning-mathematics.md, section 4).
"""

from __future__ import annotations

import bisect
import functools
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from services.slo.recent import RecentlyUsed

TAIL_COVERAGE = 0.95
"""Probability that an output is no longer than what its request is promised memory for."""
POOL_COVERAGE = 0.99
"""Probability that the outputs of all requests of a worker together are no longer than what they are promised memory
for; it is rare that all are long at once."""
REFORECAST_TOKENS = 16
"""Number of output tokens for which a forecast serves before it is made again."""
WINDOW = 1000
"""Number of latest outputs remembered for each tenant and application."""
MAX_GROUPS = 4096
"""Largest number of pairs of tenant and application remembered: clients name them, so their number must be bounded."""
AT_RISK = 32
"""Number of outputs longer than the request already is that a group must have seen. With fewer, a wider group is asked:
a 95 % quantile of 32 values is about their second largest."""
STALE = 50
"""Number of outputs in a window per output that forecasts may leave out, so that the curve is not drawn for each."""
PRIOR_MEDIAN_TOKENS, PRIOR_SIGMA, PRIOR_OUTPUTS = 128.0, 1.2, 200
"""Median and logarithmic standard deviation of the log-normal lengths assumed before anything is seen, and their
number: about what the public Azure traces of chats and code completions have together."""


@dataclass(frozen=True, slots=True)
class LengthForecast:
    """A forecast of the length of one output in tokens, including those it has already."""

    expected_tokens: float
    """Expected length."""
    variance: float
    """Variance of the length, in tokens squared."""
    tail_tokens: int
    """Length that is not exceeded with the probability asked for."""

    def serves(self, made_at_tokens: int, produced_tokens: int) -> bool:
        """Return whether the forecast still serves an output that has grown since.

        Args:
            made_at_tokens: tokens that the output had when the forecast was made.
            produced_tokens: tokens that it has now.
        """
        return produced_tokens < min(made_at_tokens + REFORECAST_TOKENS, self.tail_tokens)


class OutputLengths:
    """Forecasts output lengths from outputs that ended.

    A forecast is made from the narrowest group that has seen enough: the tenant's application, the application, all
    outputs, or an assumption. Owned by one event loop.
    """

    def __init__(self, max_groups: int = MAX_GROUPS) -> None:
        normal = NormalDist(math.log(PRIOR_MEDIAN_TOKENS), PRIOR_SIGMA)
        self._prior = _Outputs(PRIOR_OUTPUTS)
        for index in range(PRIOR_OUTPUTS):
            self._prior.add(round(math.exp(normal.inv_cdf((index + 0.5) / PRIOR_OUTPUTS))), complete=True)
        self._all = _Outputs(WINDOW)
        self._groups: RecentlyUsed[tuple[str | None, str], _Outputs] = RecentlyUsed(max_groups)

    def observe(self, tenant: str, application: str, tokens: int, *, complete: bool) -> None:
        """Learn from an output that ended.

        Args:
            tokens: its length.
            complete: whether it ended by itself; false if a limit, a cancellation or a failure cut it off.
        """
        for key in ((tenant, application), (None, application)):
            self._groups.get_or_make(key, lambda: _Outputs(WINDOW)).add(tokens, complete=complete)
        self._all.add(tokens, complete=complete)

    def forecast(
        self,
        tenant: str,
        application: str,
        coverage: float,
        limit_tokens: int,
        produced_tokens: int = 0,
        hint_tokens: int | None = None,
    ) -> LengthForecast:
        """Forecast the length of an output that goes on after `produced_tokens`.

        Args:
            coverage: probability that the tail is enough.
            limit_tokens: `max_tokens` of the request.
            hint_tokens: largest length that the client expects; void once the output is longer.

        Raises:
            ValueError: coverage is not between 0 and 1.
        """
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage must lie between 0 and 1; got {coverage}")
        limit = limit_tokens
        if hint_tokens is not None and hint_tokens > produced_tokens:
            limit = min(limit, hint_tokens)
        if limit <= produced_tokens + 1:
            tokens = max(limit, produced_tokens)
            return LengthForecast(float(tokens), 0.0, tokens)
        outputs = self._widen(tenant, application, produced_tokens)
        return outputs.forecast(coverage, produced_tokens, limit)

    def _widen(self, tenant: str, application: str, produced_tokens: int) -> _Outputs:
        """Return the narrowest group that has seen enough outputs longer than this."""
        for key in ((tenant, application), (None, application)):
            group = self._groups.get(key)
            if group is not None and group.longer_than(produced_tokens) >= AT_RISK:
                return group
        return self._all if self._all.longer_than(produced_tokens) >= AT_RISK else self._prior


def pooled_tail(forecasts: Iterable[LengthForecast], coverage: float) -> float:
    """Return the tokens that all these outputs together stay within; see `pooled`."""
    expected = variance = 0.0
    tails = 0
    for forecast in forecasts:
        expected += forecast.expected_tokens
        variance += forecast.variance
        tails += forecast.tail_tokens
    return pooled(expected, variance, tails, coverage)


def pooled(expected_tokens: float, variance: float, tail_tokens: int, coverage: float) -> float:
    """Return the tokens that several outputs together stay within with probability `coverage`.

    Lengths are taken to be independent and the sum of many to be normally distributed (central limit theorem); for a
    few outputs the sum of their tails is the smaller figure.

    Args:
        expected_tokens, variance, tail_tokens: sums over all outputs.
    """
    return min(float(tail_tokens), expected_tokens + _normal_quantile(coverage) * math.sqrt(max(0.0, variance)))


@functools.cache
def _normal_quantile(coverage: float) -> float:
    return NormalDist().inv_cdf(coverage)


class _Outputs:
    """The latest outputs of a group, and their survival curve.

    The curve is Kaplan and Meier's, which lets outputs that were cut off count as longer than they were.
    """

    __slots__ = ("_area", "_changes", "_lengths", "_moment", "_negative_survival", "_newest", "_sorted", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        self._newest: deque[tuple[int, bool]] = deque()
        self._sorted: list[tuple[int, bool]] = []
        """Lengths, and whether each was cut off; of equal lengths the complete ones come first."""
        self._changes = 0
        """Number of outputs since the curve was drawn."""
        self._lengths: list[int] = []
        """Lengths at which the curve steps down, in order."""
        self._negative_survival: list[float] = []
        """Negative survival after each length: in ascending order, so that it can be searched."""
        self._area: list[float] = []
        """Integral of the survival curve from 0 to each length."""
        self._moment: list[float] = []
        """Integral of twice the length times survival from 0 to each length."""

    def add(self, tokens: int, *, complete: bool) -> None:
        """Take in an output, and forget the oldest beyond the window."""
        output = (tokens, not complete)
        self._newest.append(output)
        bisect.insort(self._sorted, output)
        if len(self._newest) > self._window:
            oldest = self._newest.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, oldest)]
        self._changes += 1

    def longer_than(self, tokens: int) -> int:
        """Return how many outputs were longer."""
        return len(self._sorted) - bisect.bisect_right(self._sorted, (tokens, True))

    def forecast(self, coverage: float, produced: int, limit: int) -> LengthForecast:
        """Forecast the length of an output that is longer than `produced` and at most `limit`."""
        if self._changes * STALE > len(self._sorted):
            self._draw_curve()
        start = bisect.bisect_right(self._lengths, produced)
        if start == len(self._lengths):
            return LengthForecast(float(limit), 0.0, limit)
        alive = -self._negative_survival[start - 1] if start else 1.0
        wanted = (1.0 - coverage) * alive * (1.0 + 1e-12)
        at = bisect.bisect_left(self._negative_survival, -wanted, lo=start)
        tail = self._lengths[at] if at < len(self._lengths) else limit
        area, moment = self._integrals(limit)
        area_before, moment_before = self._integrals(produced)
        remaining = (area - area_before) / alive
        square = (moment - moment_before) / alive - 2.0 * produced * remaining
        # Rounding must take no forecast out of its bounds: another token comes, and no more than the limit.
        remaining = max(1.0, remaining)
        return LengthForecast(
            expected_tokens=min(float(limit), produced + remaining),
            variance=max(0.0, square - remaining**2),
            tail_tokens=min(limit, tail),
        )

    def _draw_curve(self) -> None:
        """Draw the survival curve, with one more output that is longer than all seen: tails err on the long side."""
        self._changes = 0
        outputs = np.array(self._sorted, dtype=np.int64)
        lengths, cut = outputs[:, 0], outputs[:, 1]
        at_risk = len(lengths) + 1.0 - np.arange(len(lengths))
        survival = np.cumprod(1.0 - (1 - cut) / at_risk)
        before = np.concatenate(((1.0,), survival[:-1]))
        edges = np.concatenate(((0,), lengths)).astype(np.float64)
        self._lengths = lengths.tolist()
        self._negative_survival = (-survival).tolist()
        self._area = np.cumsum(before * np.diff(edges)).tolist()
        self._moment = np.cumsum(before * np.diff(edges**2)).tolist()

    def _integrals(self, tokens: int) -> tuple[float, float]:
        """Return the integrals of the survival curve, and of twice the length times it, from 0 to `tokens`.

        Nothing is added after the longest output.
        """
        at = bisect.bisect_right(self._lengths, tokens)
        if at == 0:
            return float(tokens), float(tokens) ** 2
        area, moment = self._area[at - 1], self._moment[at - 1]
        if at < len(self._lengths):
            survival, since = -self._negative_survival[at - 1], self._lengths[at - 1]
            area += survival * (tokens - since)
            moment += survival * (tokens**2 - since**2)
        return area, moment
