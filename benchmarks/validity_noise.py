"""How step times stray from a model: each by itself, and whole stretches of time together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.slo.regression import spread_of

LASTS_S = tuple(0.05 * 1.25**power for power in range(32))
"""From 50 ms to 50 s."""
APART_S = tuple(0.05 * 2.0**power for power in range(10))
"""Edges between which pairs of steps are taken together."""
MOST_APART = 256
"""Steps between the two of a pair."""
STRAY = 3.0
"""A step that strays further than so many spreads counts as if it had strayed so far."""

Ratios = Sequence[tuple[float, float]]
"""Steps of one engine: when each began and what it took as a multiple of what the model says; by time."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Relative standard deviations, as those of `simulator.machine.Machine`."""

    alone: float
    shared: float
    lasts_s: float


def noise_of(engines: Sequence[Ratios]) -> Noise:
    """What is shared is what still goes together in steps that lie apart: v * exp(-apart / lasts), fitted to the
    covariance of their logarithms by least squares.

    Args:
        engines: at least one step together.
    """
    times_s = [np.array([began_s for began_s, _ in of]) for of in engines]
    strays = [np.log([ratio for _, ratio in of]) for of in engines]
    together = np.concatenate(strays)
    spread = spread_of(sorted(together.tolist()))
    if not spread:
        return Noise(0.0, 0.0, 1.0)
    middle = float(np.median(together))
    strays = [np.clip(of - middle, -STRAY * spread, STRAY * spread) for of in strays]
    total = float(np.mean(np.concatenate(strays) ** 2))
    apart_s, covariance, pairs = _covariances(times_s, strays)
    shared, lasts_s, least = 0.0, 1.0, float(np.sum(pairs * covariance**2))
    for each_s in LASTS_S:
        shape = np.exp(-apart_s / each_s)
        weight = float(np.sum(pairs * shape**2))
        height = min(total, max(0.0, float(np.sum(pairs * shape * covariance)) / weight)) if weight else 0.0
        error = float(np.sum(pairs * (covariance - height * shape) ** 2))
        if error < least:
            shared, lasts_s, least = height, each_s, error
    part = shared / total
    return Noise(spread * (1 - part) ** 0.5, spread * part**0.5, lasts_s)


def _covariances(
    times_s: Sequence[NDArray[np.float64]], strays: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return, by how far pairs of steps lie apart, that distance, the covariance, and the number of pairs."""
    sums = np.zeros((3, len(APART_S) + 1))
    for (at_s, stray), lag in itertools.product(zip(times_s, strays, strict=True), range(1, MOST_APART + 1)):
        if lag < len(at_s):
            apart_s = at_s[lag:] - at_s[:-lag]
            which = np.digitize(apart_s, APART_S)
            for row, values in enumerate((apart_s, stray[lag:] * stray[:-lag], np.ones_like(apart_s))):
                sums[row] += np.bincount(which, values, len(APART_S) + 1)
    found = sums[:, (sums[2] > 0) & (np.arange(len(APART_S) + 1) < len(APART_S))]
    return found[0] / found[2], found[1] / found[2], found[2]
