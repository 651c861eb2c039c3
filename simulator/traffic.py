"""Traffic: a workload without end, of which a rate and a duration take as much as they need."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from simulator.request import OfferedRequest
from simulator.scenarios import Scenario, at_rate, generate

_CHUNK = 1000
"""Number of sessions generated at once."""


class Traffic(Protocol):
    """A sequence of sessions without end, one a second on average."""

    def sessions(self, requests: int) -> Sequence[OfferedRequest]:
        """Return the first sessions that have so many requests in all; asked for more, it returns these and others."""


class _Endless:
    """Traffic from an iterator, which keeps what it drew before."""

    def __init__(self, following: Iterator[OfferedRequest]) -> None:
        self._following = following
        self._drawn: list[OfferedRequest] = []
        self._requests: list[int] = []
        """Number of requests up to and including each session of `_drawn`."""

    def sessions(self, requests: int) -> Sequence[OfferedRequest]:
        while not self._requests or self._requests[-1] < requests:
            session = next(self._following)
            self._requests.append((self._requests[-1] if self._requests else 0) + session.rounds)
            self._drawn.append(session)
        return self._drawn[: bisect.bisect_left(self._requests, requests) + 1]


def generated(wanted: Scenario, seed: int) -> Traffic:
    """Return generated traffic of a scenario; the same seed gives the same sessions."""
    return _Endless(_chunks(wanted, seed))


def repeated(offered: Sequence[OfferedRequest]) -> Traffic:
    """Return traffic that repeats a trace for ever, one request a second on average as `from_trace` makes it.

    Prompts share beginnings only within a pass, so that nothing is cached because the trace was repeated.
    """
    return _Endless(_passes(offered))


def _chunks(wanted: Scenario, seed: int) -> Iterator[OfferedRequest]:
    for chunk in itertools.count():
        # The first is that of the seed alone, the others are drawn from the pair.
        made = generate(wanted, _CHUNK, seed if chunk == 0 else (seed, chunk), first=chunk * _CHUNK)
        for session in made:
            yield replace(session, at_s=session.at_s + chunk * _CHUNK)


def _passes(offered: Sequence[OfferedRequest]) -> Iterator[OfferedRequest]:
    span_s = offered[-1].at_s - offered[0].at_s + 1.0
    most = max((block for request in offered for block in request.prefix), default=0) + 1
    for number in itertools.count():
        for request in offered:
            prefix = tuple(block + number * most for block in request.prefix)
            yield replace(request, at_s=request.at_s - offered[0].at_s + number * span_s, prefix=prefix)


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that are offered at one rate."""

    offered: Sequence[OfferedRequest]
    scored: range
    """Indices of the sessions of `offered` that are scored."""

    @property
    def requests(self) -> int:
        """Number of requests that are scored."""
        return sum(self.offered[index].rounds for index in self.scored)

    @property
    def seconds(self) -> float:
        """Seconds from the first to the last arrival of a scored session."""
        return self.offered[self.scored[-1]].at_s - self.offered[self.scored[0]].at_s

    @property
    def of_scored(self) -> Sequence[OfferedRequest]:
        """The sessions that are scored."""
        return [self.offered[index] for index in self.scored]


@dataclass(frozen=True, slots=True)
class Window:
    """How much traffic a rate is tried with: for how long, within limits on the number of requests."""

    seconds: float = 60.0
    """Seconds of arrivals that are scored, within the limits of the next two."""
    least: int = 300
    """Least number of requests that are scored, whatever the rate."""
    most: int = 6000
    """Greatest number of requests that are scored."""
    margin: float = 0.25
    """Number of requests before the scored ones, and again after them, that keep the cluster busy: a share of these."""

    def load(self, traffic: Traffic, requests_per_s: float) -> Load:
        """Return the load whose scored requests arrive at this rate; the others are stretched by the same factor."""
        counted = min(self.most, max(self.least, math.ceil(requests_per_s * self.seconds)))
        # A share of their number, not of time: with the least number the same requests come at every rate.
        margin = math.ceil(self.margin * counted)
        before = len(traffic.sessions(margin)) if margin else 0
        scored = range(before, len(traffic.sessions(margin + counted)))
        sessions = traffic.sessions(2 * margin + counted)
        return Load(at_rate(sessions, requests_per_s, scored), scored)
