"""The smallest cluster that keeps a promise for given traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from services.slo.contract import Contract
from services.slo.hardware import PROFILES, HardwareProfile
from simulator.capacity import Bench
from simulator.machine import WEIGHT_BYTES, Machine
from simulator.policies.catalogue import Setting, Variant, policy
from simulator.request import Offered

MOST_WORKERS = 256
BEYOND = 2
"""Workers more than needed that the curve shows."""
MOST_SPLITS = 7
"""Ratios of prefill to decode workers tried."""


class NoSizeError(Exception):
    """No cluster that is looked at keeps the promise, or the question names nothing known."""


@dataclass(frozen=True, slots=True)
class Size:
    """One cluster that was tried."""

    workers: int
    gpus: int
    how: str
    """Which of the workers prefill and decode."""
    attainment: float
    keeps: bool


def profile_for(model: str, gpu: str) -> HardwareProfile:
    """The first profile without a drafter of that model on that GPU.

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


def with_contract(offered: Sequence[Offered], contract: Contract) -> list[Offered]:
    return [replace(request, contract=contract) for request in offered]


def sizes(
    machine: Machine, offered: Sequence[Offered], rate_rps: float, attainment: float, seed: int
) -> Iterator[Size]:
    """What was tried, as it is tried: co-located first, until the smallest number of workers is found, then splits of
    as many and of one fewer.

    Raises:
        NoSizeError: more than `MOST_WORKERS` would be needed.
    """
    tried: dict[int, Size] = {}

    def colocated(workers: int) -> Size:
        if workers not in tried:
            tried[workers] = _try(machine, offered, rate_rps, attainment, seed, workers, "ours-colocated", 0)
        return tried[workers]

    low, high = 0, 1
    while not (size := colocated(high)).keeps:
        yield size
        low, high = high, high * 2
        if high > MOST_WORKERS:
            raise NoSizeError(f"{MOST_WORKERS} workers keep {size.attainment:.1%}")
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


def smallest(tried: Sequence[Size]) -> Size:
    """Fewest workers; of these, the one that keeps most.

    Raises:
        NoSizeError: none keeps the promise.
    """
    keeping = [size for size in tried if size.keeps]
    if not keeping:
        raise NoSizeError("none of the clusters tried keeps the promise")
    return min(keeping, key=lambda size: (size.workers, -size.attainment))


def _try(
    machine: Machine,
    offered: Sequence[Offered],
    rate_rps: float,
    attainment: float,
    seed: int,
    workers: int,
    name: str,
    prefills: int,
) -> Size:
    bench = Bench(machine, workers, offered, seed)
    contracts = {id(request.contract): request.contract for request in offered}.values()
    tpots_s = tuple(sorted({target.tpot_s for c in contracts for target in (*c.decode, *c.final_decode)}))
    variants = policy(name)(Setting(machine, workers, tpots_s))
    tried: Sequence[Variant] = variants[prefills - 1 : prefills] if prefills else variants
    reached = 0.0
    for variant in tried:
        reached = max(reached, bench.run(variant, rate_rps).attainment)
        if reached >= attainment:
            break
    how = f"{tried[0].label} that also prefills on slack" if prefills else f"{workers} that do both"
    return Size(workers, bench.gpus, how, reached, reached >= attainment)
