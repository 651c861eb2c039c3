"""The rate at which a share of all requests offered is still attained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulator.bound import most_attained
from simulator.cluster import Cluster, Failure, Outcome
from simulator.machine import Machine
from simulator.policies.catalogue import Variant
from simulator.request import Offered
from simulator.scenarios import at_rate

PRECISION = 0.03
"""Of a capacity, relative."""
LEAST_RPS, MOST_RPS = 0.02, 20_000.0

Probe = Callable[[float], bool]
"""Whether a rate is carried."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Requests per second of all workers together; 0 if not even the lowest rate is carried."""

    rps: float
    label: str
    """The variant that reached it."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A workload and the workers it is offered to."""

    machine: Machine
    workers: int
    offered: Sequence[Offered]
    """One a second: see `at_rate`."""
    seed: int = 0
    failures: Sequence[Failure] = ()

    @property
    def gpus(self) -> int:
        return self.workers * self.machine.gpus

    @property
    def requests(self) -> int:
        return sum(request.rounds for request in self.offered)

    def run(self, variant: Variant, rate_rps: float, most_missed: int | None = None, *, keep: bool = False) -> Outcome:
        return Cluster(
            self.machine,
            self.workers,
            variant.make,
            at_rate(self.offered, rate_rps),
            seed=self.seed,
            failures=self.failures,
            most_missed=most_missed,
            keep=keep,
        ).run()

    def carries(self, variant: Variant, rate_rps: float, attainment: float) -> bool:
        """Whether that share is attained; a run is given up once it cannot be."""
        most_missed = math.floor((1 - attainment) * self.requests + 1e-9)
        return not self.run(variant, rate_rps, most_missed).stopped

    def capacity(self, variants: Sequence[Variant], attainment: float) -> Capacity:
        """Of the best variant."""
        best = Capacity(0.0, variants[0].label)
        for variant in variants:

            def carried(rate_rps: float, variant: Variant = variant) -> bool:
                return self.carries(variant, rate_rps, attainment)

            if best.rps and not carried(best.rps * (1 + PRECISION)):
                continue
            rps = bisect(carried, best.rps * (1 + PRECISION) or float(self.gpus))
            if rps > best.rps:
                best = Capacity(rps, variant.label)
        return best

    def bound(self, attainment: float) -> float:
        """What no scheduler can exceed, in requests per second."""
        return bisect(
            lambda rate_rps: most_attained(at_rate(self.offered, rate_rps), self.machine, self.workers) >= attainment,
            float(self.gpus),
        )


def bisect(carried: Probe, start_rps: float) -> float:
    """The highest rate that is carried, if lower rates are carried too; 0 if even the lowest is not."""
    low, high = 0.0, start_rps
    while carried(high):
        low, high = high, high * 2
        if high > MOST_RPS:
            return low
    while low == 0.0:
        trial = high / 2
        if trial < LEAST_RPS:
            return 0.0
        if carried(trial):
            low = trial
        else:
            high = trial
    while high > low * (1 + PRECISION):
        middle = math.sqrt(low * high)
        if carried(middle):
            low = middle
        else:
            high = middle
    return low
