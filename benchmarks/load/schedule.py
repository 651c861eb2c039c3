"""What is sent when: from a trace, or made up. The same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.prompts import BLOCK_TOKENS
from benchmarks.requested_slo import RequestedSlo, SloMix
from benchmarks.workload import MIXED, arrivals, endless
from simulator.traces import Traced


class ScheduleError(Exception):
    """Nothing would be sent."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to come."""

    number: int
    at_s: float
    """After the beginning."""
    slo: RequestedSlo
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """Identities of the prompt's blocks; prompts with equal ones share them."""
    block_tokens: int = BLOCK_TOKENS
    tenant: str = ""
    """Who sends it; empty: whoever the server takes the client for."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """All requests of one rate, in order."""

    planned: tuple[Planned, ...]
    seconds: float
    """How long they come."""
    clipped: int = 0
    """Prompts that were cut to the longest allowed."""

    @property
    def rate_rps(self) -> float:
        return len(self.planned) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a workload is sent."""

    seconds: float = math.inf
    requests: int | None = None
    longest_prompt: int | None = None
    length_scale: float = 1.0
    """All lengths are multiplied by it, shared blocks too."""


@dataclass(frozen=True, slots=True)
class LogNormalLengths:
    """Log-normal in tokens."""

    median: int
    sigma: float = 0.0
    """Standard deviation of the logarithm; 0: always the median."""

    def draw(self, rng: np.random.Generator) -> int:
        return max(1, round(self.median * math.exp(self.sigma * rng.standard_normal())))


@dataclass(frozen=True, slots=True)
class Made:
    """A made-up workload."""

    prompt: LogNormalLengths
    output: LogNormalLengths
    burstiness: float = 1.0
    """Coefficient of variation of the gaps between arrivals; 1 is Poisson."""


def from_trace(
    traced: Sequence[Traced], mix: SloMix, rate_rps: float | None, speed: float, bounds: Bounds, seed: int
) -> Schedule:
    """A trace, `speed` times as fast, or stretched so that `rate_rps` come on average. Rows with contracts keep theirs.

    Raises:
        ScheduleError
    """
    began_s = traced[0].at_s
    if rate_rps is not None:
        span_s = traced[-1].at_s - began_s
        if len(traced) < 2 or span_s <= 0:
            raise ScheduleError("a trace whose requests all come at once has no rate: say a speed instead")
        speed = rate_rps * span_s / (len(traced) - 1)
    rng = np.random.default_rng(seed)
    planned: list[Planned] = []
    for row in traced:
        at_s = (row.at_s - began_s) / speed
        if _over(planned, at_s, bounds):
            break
        asked = mix.draw(rng)
        slo = asked if row.asks_nothing else RequestedSlo(row.profile, row.ttft_s, None, row.tpot_s, asked.refuse)
        planned.append(Planned(len(planned), at_s, slo, row.prompt_tokens, row.output_tokens, row.prefix))
    return _bounded(planned, bounds, None)


def made_up(made: Made, mix: SloMix, rate_rps: float, bounds: Bounds, seed: int) -> Schedule:
    """
    Raises:
        ScheduleError
    """
    rng = np.random.default_rng(seed)
    planned: list[Planned] = []
    for at_s in arrivals(rng, rate_rps, made.burstiness):
        if _over(planned, at_s, bounds):
            break
        slo, prompt, output = mix.draw(rng), made.prompt.draw(rng), made.output.draw(rng)
        planned.append(Planned(len(planned), at_s, slo, prompt, output))
    return _bounded(planned, bounds, rate_rps)


def of_applications(rate_rps: float, burstiness: float, bounds: Bounds, seed: int) -> Schedule:
    """Chat, code and summaries of `benchmarks.workload`, each with the profile of its name.

    Raises:
        ScheduleError
    """
    planned: list[Planned] = []
    for request in endless(rate_rps, seed, MIXED, burstiness):
        if _over(planned, request.at_s, bounds):
            break
        slo = RequestedSlo(request.profile, refuse=request.refuse)
        planned.append(Planned(len(planned), request.at_s, slo, request.prompt_tokens, request.output_tokens))
    return _bounded(planned, bounds, rate_rps)


def _over(planned: Sequence[Planned], at_s: float, bounds: Bounds) -> bool:
    return at_s >= bounds.seconds or (bounds.requests is not None and len(planned) >= bounds.requests)


def _bounded(planned: list[Planned], bounds: Bounds, rate_rps: float | None) -> Schedule:
    """
    Args:
        rate_rps: of made-up arrivals, which go on until the time is over whether or not one comes at its very end.
    """
    if not planned:
        raise ScheduleError("no request comes within the limits of time and number")
    scaled = [_scaled(request, bounds.length_scale) for request in planned]
    longest = bounds.longest_prompt or math.inf
    sent = tuple(replace(request, prompt_tokens=int(min(request.prompt_tokens, longest))) for request in scaled)
    last_s = sent[-1].at_s
    if rate_rps is None:
        seconds = last_s + last_s / max(1, len(sent) - 1)
    else:
        by_number = bounds.requests is not None and len(sent) >= bounds.requests
        seconds = last_s + 1 / rate_rps if by_number else bounds.seconds
    return Schedule(sent, seconds, sum(request.prompt_tokens > longest for request in scaled))


def _scaled(request: Planned, scale: float) -> Planned:
    if scale == 1.0:
        return request
    return replace(
        request,
        prompt_tokens=max(1, round(scale * request.prompt_tokens)),
        output_tokens=max(1, round(scale * request.output_tokens)),
        block_tokens=max(1, round(scale * request.block_tokens)),
    )
