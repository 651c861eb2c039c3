"""Capacity: the highest rate at which a share of all requests offered still keep their contracts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulator.bound import most_attained
from simulator.cluster import Cluster, Failure, RunOutcome
from simulator.machine import Machine
from simulator.policies.catalogue import Variant
from simulator.request import OfferedRequest
from simulator.traffic import Load, Traffic, Window, repeated

PRECISION = 0.022
"""Relative precision to which capacities are bisected; policies that are compared differ by a few percent."""
LEAST_RPS, MOST_RPS = 0.02, 20_000.0
"""Rates beyond which no capacity is looked for, in requests per second of all workers."""

Probe = Callable[[float], bool]
"""A function that says whether a rate, in requests per second, is carried."""
WINDOW = Window()
LASTING_TIMES, LASTING_REQUESTS = 60, 5
"""Factors by which a lasting load exceeds the window: its duration, and its least and greatest number of requests."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The capacity of a policy in requests per second of all workers; 0 if not even the lowest rate is carried."""

    rps: float
    label: str
    """Label of the variant that reached it."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A workload, and the workers it is offered to at any rate."""

    machine: Machine
    workers: int
    traffic: Traffic
    window: Window = WINDOW
    seed: int = 0
    failures: Sequence[Failure] = ()

    @classmethod
    def of(cls, machine: Machine, workers: int, offered: Sequence[OfferedRequest], seed: int = 0) -> Bench:
        """Return a bench that offers exactly these requests at every rate, all of which are scored."""
        requests = sum(request.rounds for request in offered)
        return cls(machine, workers, repeated(offered), Window(0.0, requests, requests, 0.0), seed)

    @property
    def gpus(self) -> int:
        """Number of GPUs of all workers."""
        return self.workers * self.machine.gpus

    def load(self, rate_rps: float) -> Load:
        """Return the requests that are offered at a rate."""
        return self.window.load(self.traffic, rate_rps)

    def run(self, variant: Variant, rate_rps: float) -> RunOutcome:
        """Simulate a variant at a rate, to the end."""
        return self._run(variant, self.load(rate_rps), None)

    def carries(self, variant: Variant, rate_rps: float, attainment: float) -> bool:
        """Return whether that share is attained; the run ends as soon as that is certain."""
        load = self.load(rate_rps)
        most_missed = math.floor((1 - attainment) * load.requests + 1e-9)
        return self._run(variant, load, most_missed).attained >= load.requests - most_missed

    def _run(self, variant: Variant, load: Load, most_missed: int | None) -> RunOutcome:
        return Cluster(
            self.machine,
            self.workers,
            variant.make,
            load.offered,
            scored=load.scored,
            seed=self.seed,
            failures=self.failures,
            most_missed=most_missed,
        ).run()

    def capacity(self, variants: Sequence[Variant], attainment: float, at_most_rps: float = math.inf) -> Capacity:
        """Bisect the capacity of the best variant.

        Variants after the first are bisected only if they carry more than the best before them.

        Args:
            at_most_rps: a rate that is known to be carried by no variant.
        """
        best = Capacity(0.0, variants[0].label)
        for variant in variants:

            def carried(rate_rps: float, variant: Variant = variant) -> bool:
                return rate_rps < at_most_rps and self.carries(variant, rate_rps, attainment)

            if best.rps and not carried(best.rps * (1 + PRECISION)):
                continue
            start_rps = 0.75 * at_most_rps if at_most_rps < math.inf else float(self.gpus)
            rps = bisect(carried, best.rps * (1 + PRECISION) or start_rps)
            if rps > best.rps:
                best = Capacity(rps, variant.label)
        return best

    def bound(self, attainment: float) -> float:
        """Return the rate in requests per second that no scheduler can exceed, by the clairvoyant bound.

        It bounds both the requests that are scored and a load that lasts.
        """

        def kept(offered: Sequence[OfferedRequest]) -> bool:
            return most_attained(offered, self.machine, self.workers) >= attainment

        def carried(rate_rps: float) -> bool:
            return kept(self.load(rate_rps).of_scored) and kept(self.lasting_load(rate_rps).offered)

        return bisect(carried, float(self.gpus))

    def lasting_load(self, rate_rps: float) -> Load:
        """Return a load so long that it matters little that the cluster is idle before and after it."""
        here = self.window
        least, most = LASTING_REQUESTS * here.least, LASTING_REQUESTS * here.most
        return Window(LASTING_TIMES * here.seconds, least, most, margin=0.0).load(self.traffic, rate_rps)


def bisect(carried: Probe, start_rps: float) -> float:
    """Return the highest rate that is carried if all lower ones are, to `PRECISION`; 0 if not even the lowest is."""
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
