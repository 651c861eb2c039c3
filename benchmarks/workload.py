"""Requests to offer to a cluster: when each comes, how long it is, what it is promised. Made from a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np


@dataclass(frozen=True, slots=True)
class Application:
    """One kind of client. Lengths are log-normal: median and the sigma of the logarithm, in tokens."""

    profile: str
    share: float
    prompt_median: float
    prompt_sigma: float
    output_median: float
    output_sigma: float
    refuse: float = 0.5
    """Share of requests that would rather be refused than served without a guarantee."""


MIXED: Sequence[Application] = (
    Application("chatbot", 0.5, 300, 0.9, 40, 0.6),
    Application("coder", 0.3, 700, 0.8, 25, 0.6),
    Application("summarizer", 0.2, 1100, 0.5, 30, 0.4),
)
"""Three of the paper's applications, with outputs shortened so that a load lasts seconds and not minutes."""


@dataclass(frozen=True, slots=True)
class Offered:
    """One request of a workload."""

    at_s: float
    profile: str
    prompt_tokens: int
    output_tokens: int
    refuse: bool


def mixed(
    rate_rps: float, seconds: float, seed: int, applications: Sequence[Application] = MIXED, burstiness: float = 1.0
) -> list[Offered]:
    """Requests for so many seconds; see `endless`."""
    return list(takewhile(lambda o: o.at_s < seconds, endless(rate_rps, seed, applications, burstiness)))


def endless(rate_rps: float, seed: int, applications: Sequence[Application], burstiness: float) -> Iterator[Offered]:
    """
    Args:
        burstiness: coefficient of variation of the gaps between arrivals; 1 is Poisson.
    """
    rng = np.random.default_rng(seed)
    shares = np.array([application.share for application in applications])
    for at_s in arrivals(rng, rate_rps, burstiness):
        kind = applications[int(rng.choice(len(applications), p=shares / shares.sum()))]
        yield Offered(
            at_s,
            kind.profile,
            _length(rng, kind.prompt_median, kind.prompt_sigma, 4000),
            _length(rng, kind.output_median, kind.output_sigma, 400),
            bool(rng.random() < kind.refuse),
        )


def arrivals(rng: np.random.Generator, rate_rps: float, burstiness: float) -> Iterator[float]:
    """Times in seconds, without end; gaps are gamma distributed."""
    shape = 1.0 / burstiness**2
    at_s = 0.0
    while True:
        at_s += float(rng.gamma(shape, 1.0 / (rate_rps * shape)))
        yield at_s


def mean_prompt_tokens(applications: Sequence[Application] = MIXED) -> float:
    """Return the mean prompt tokens of a request of this mix."""
    total = sum(application.share for application in applications)
    return sum(kind.share * kind.prompt_median * math.exp(kind.prompt_sigma**2 / 2) for kind in applications) / total


def _length(rng: np.random.Generator, median: float, sigma: float, most: int) -> int:
    return int(np.clip(rng.lognormal(math.log(median), sigma), 2, most))
