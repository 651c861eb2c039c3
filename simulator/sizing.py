"""Sizing: finds the smallest simulated cluster that keeps the contracts of given traffic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from services.slo.contract import Contract
from services.slo.hardware import PROFILES, HardwareProfile
from simulator.capacity import Bench
from simulator.machine import WEIGHT_BYTES, Machine
from simulator.policies.catalogue import Setting, Variant, policy
from simulator.request import OfferedRequest

MOST_WORKERS = 256
"""Largest cluster that is tried (chosen)."""
HOPELESS, WORTH_IT = 2, 0.002
"""Number of doublings of the workers after which the search ends if they gained less than this share together."""
BEYOND = 2
"""Number of workers above and below the smallest cluster that the curve shows as well."""
MOST_SPLITS = 7
"""Number of ratios of prefill to decode workers tried, about."""


class NoSizeError(Exception):
    """No cluster that is tried keeps the contracts, or there is no profile of the model on the GPU."""


class ImpossiblePromiseError(NoSizeError):
    """Not even idle workers keep the contracts, so no number of them does."""


@dataclass(frozen=True, slots=True)
class Size:
    """A cluster that was tried, and what it kept."""

    workers: int
    gpus: int
    how: str
    """Which of the workers prefill and decode, in words."""
    attainment: float
    keeps: bool
    """Whether it attains the share that is wanted."""


def profile_for(model: str, gpu: str) -> HardwareProfile:
    """Return the first profile without a drafter of that model on that GPU.

    Raises:
        NoSizeError: there is none.
    """
    wanted = [
        profile
        for profile in PROFILES.values()
        if profile.model.lower() == model.lower() and profile.hardware.lower() == gpu.lower() and not profile.drafter
    ]
    if not wanted:
        known = sorted({f"{p.model} on {p.hardware}" for p in PROFILES.values() if p.model in WEIGHT_BYTES})
        raise NoSizeError(f"no profile of {model} on {gpu}; known: {', '.join(known)}")
    return wanted[0]


def with_contract(offered: Sequence[OfferedRequest], contract: Contract) -> list[OfferedRequest]:
    """Return the same requests, all with this contract."""
    return [replace(request, contract=contract) for request in offered]


def sizes(
    machine: Machine, offered: Sequence[OfferedRequest], rate_rps: float, attainment: float, seed: int
) -> Iterator[Size]:
    """Try clusters, and yield each when it has been tried.

    Co-located workers come first, until their smallest number is found; then splits into prefill and decode workers, of
    as many and of one fewer.

    Raises:
        ImpossiblePromiseError: each request alone on a worker would not do.
        NoSizeError: more than `MOST_WORKERS` would be needed, or more of them do not help.
    """
    check_possible(machine, offered, attainment)
    tried: dict[int, Size] = {}

    def colocated(workers: int) -> Size:
        if workers not in tried:
            tried[workers] = _try(machine, offered, rate_rps, attainment, seed, workers, "ours-colocated", 0)
        return tried[workers]

    low, high = 0, 1
    reached: list[float] = []
    while not (size := colocated(high)).keeps:
        yield size
        reached.append(size.attainment)
        if len(reached) > HOPELESS and reached[-1] - reached[-1 - HOPELESS] < WORTH_IT:
            raise NoSizeError(
                f"more workers do not help: {high} keep {size.attainment:.1%}, {high >> HOPELESS} kept "
                f"{reached[-1 - HOPELESS]:.1%}"
            )
        low, high = high, high * 2
        if high > MOST_WORKERS:
            raise NoSizeError(f"{low} workers keep {size.attainment:.1%}; no more are tried")
    yield size
    while high > low + 1:
        middle = (low + high) // 2
        yield colocated(middle)
        low, high = (low, middle) if tried[middle].keeps else (middle, high)
    for workers in range(1, high + BEYOND + 1):
        if workers not in tried and workers >= high - BEYOND:
            yield colocated(workers)
    for workers in (high, high - 1):
        stride = max(1, (workers - 1) // MOST_SPLITS)
        for prefills in range(1, workers, stride):
            yield _try(machine, offered, rate_rps, attainment, seed, workers, "ours-local-prefill", prefills)


def check_possible(machine: Machine, offered: Sequence[OfferedRequest], attainment: float) -> None:
    """Check that workers that are idle whenever a request comes keep that share of the contracts.

    Raises:
        ImpossiblePromiseError: they do not; the message has the tightest targets that they would keep.
    """
    possible = sum(_is_possible(machine, request) for request in offered)
    if possible >= attainment * len(offered):
        return
    at = min(len(offered) - 1, math.ceil(attainment * len(offered)))
    ttft_s = sorted(_least_ttft_s(machine, request) for request in offered)[at]
    tpot_s = sorted(_least_tpot_s(machine, request) for request in offered)[at]
    raise ImpossiblePromiseError(
        f"not even idle workers keep more than {possible / len(offered):.1%}: to keep {attainment:.1%} they need "
        f"ttft={math.ceil(ttft_s * 1e3) / 1e3:g} and tpot={math.ceil(tpot_s * 1e3) / 1e3:g} (seconds) at least"
    )


def _is_possible(machine: Machine, request: OfferedRequest) -> bool:
    contract = request.contract
    ttft_s = contract.ttft_s(machine.idle_prefill_s(request.prompt_tokens))
    tpot_s = min((target.tpot_s for target in contract.decode), default=math.inf)
    return (
        request.prompt_tokens + request.output_tokens <= machine.kv_tokens
        and (ttft_s is None or _least_ttft_s(machine, request) <= ttft_s)
        and _least_tpot_s(machine, request) <= tpot_s
    )


def _least_ttft_s(machine: Machine, request: OfferedRequest) -> float:
    """Return the seconds to the first token on an idle worker; what may lie in a prefix cache takes no time."""
    cached = min(len(request.prefix) * request.prefix_block_tokens, request.prompt_tokens - 1)
    return machine.truth.prefill_s(request.prompt_tokens, machine.limits.max_step_tokens, cached)


def _least_tpot_s(machine: Machine, request: OfferedRequest) -> float:
    """Return the least mean TPOT in seconds, with every draft accepted; 0 if the first token is the only one."""
    if request.output_tokens == 1:
        return 0.0
    return machine.truth.decode_step_s(1, request.prompt_tokens) / (1 + machine.max_draft_tokens)


def smallest(tried: Sequence[Size]) -> Size:
    """Return the cluster with fewest workers that keeps the contracts; of several, the one that attains most.

    Raises:
        NoSizeError: none keeps the promise.
    """
    keeping = [size for size in tried if size.keeps]
    if not keeping:
        raise NoSizeError("none of the clusters tried keeps the promise")
    return min(keeping, key=lambda size: (size.workers, -size.attainment))


def _try(
    machine: Machine,
    offered: Sequence[OfferedRequest],
    rate_rps: float,
    attainment: float,
    seed: int,
    workers: int,
    name: str,
    prefills: int,
) -> Size:
    bench = Bench.of(machine, workers, offered, seed)
    contracts = {id(request.contract): request.contract for request in offered}.values()
    tpots_s = tuple(sorted({target.tpot_s for c in contracts for target in (*c.decode, *c.final_decode)}))
    variants = policy(name)(Setting(machine, workers, tpots_s))
    tried: Sequence[Variant] = variants[prefills - 1 : prefills] if prefills else variants
    reached = 0.0
    for variant in tried:
        reached = max(reached, bench.run(variant, rate_rps).attainment)
        if reached >= attainment:
            break
    how = f"local prefill: {tried[0].label}" if prefills else f"{workers} co-located"
    return Size(workers, bench.gpus, how, reached, reached >= attainment)
