"""The experiments of `bench capacity`: capacities of policies, sweeps of rates, and ours with one thing changed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from services.slo.composer import ComposerPolicy
from simulator.capacity import PRECISION, Bench, Capacity
from simulator.cluster import RunOutcome
from simulator.knowledge import Knowledge
from simulator.policies.catalogue import OURS, Setting, policy
from simulator.policies.choices import Choices, Roles
from simulator.traffic import Load

BOUND, PAPER = "clairvoyant-bound", "slos-serve-paper"
ABLATIONS: Mapping[str, Choices] = {
    "whole": Choices(),
    "without admission control": Choices(admission=False),
    "without a cost threshold": Choices(cost_threshold=False),
    "headroom for typical requests": Choices(headroom_requests=1.0),
    "no stream sits out": Choices(policy=ComposerPolicy(streams_may_skip=False)),
    "half a TPOT kept ahead": Choices(policy=ComposerPolicy(buffer_tpots=0.5)),
    "best effort gives no way": Choices(policy=ComposerPolicy(best_effort_step_multiple=math.inf)),
    "without step composition": Choices(composition=False),
    "with speculation": Choices(speculation=True),
    "without best effort": Choices(best_effort=False),
    "ring routing": Choices(one_worker_in_turn=True),
    "some workers only prefill": Choices(roles=Roles.LOCAL_PREFILL),
    "without local prefill": Choices(roles=Roles.DISAGGREGATED),
}
"""What is taken out of ours, co-located, one at a time; the last two say what prefills on every worker are worth."""
SENSITIVITY: Mapping[str, Choices] = {
    "whole": Choices(),
    "lengths known": Choices(knowledge=Knowledge(lengths=True)),
    **{
        f"step times {error:+.0%}, never learnt": Choices(knowledge=Knowledge(error=error, learns=False))
        for error in (0.0, 0.1, 0.2, 0.4, -0.1, -0.2, -0.4)
    },
}
SWEEP = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
"""Rates of a sweep, as multiples of what the policy carries at 90 %."""
REPLICAS = (1, 2, 4, 8, 64)


@dataclass(frozen=True, slots=True)
class CapacityRecord:
    """The capacities of a policy on a scenario, as files keep them."""

    scenario: str
    policy: str
    gpus: int
    capacity_90_rps_per_gpu: float
    capacity_99_rps_per_gpu: float
    machine: str
    requests: int
    """Number of requests that were scored at the capacity at 90 %."""
    seconds: float
    """Seconds that these took to arrive."""
    variant_90: str = ""
    """Label of the variant that reached the capacity at 90 %."""
    variant_99: str = ""


@dataclass(frozen=True, slots=True)
class RateRecord:
    """What a policy kept at one rate, as files keep it."""

    scenario: str
    policy: str
    gpus: int
    rate: float
    """Requests per second of all GPUs together."""
    attainment: float
    goodput_rps: float
    guaranteed: int
    guaranteed_kept: int
    offered: int
    machine: str
    change: str = ""
    """What was changed in the policy; empty if nothing was."""


def capacity(scenario: str, bench: Bench, tpots_s: tuple[float, ...], name: str) -> CapacityRecord | None:
    """Find the capacities of a policy, or of the bound; None if the policy cannot be had on this machine."""
    if name == BOUND:
        at_90, at_99 = Capacity(bench.bound(0.9), ""), Capacity(bench.bound(0.99), "")
        return _record(scenario, name, bench, at_90, at_99, bench.lasting_load)
    variants = policy(name)(Setting(bench.machine, bench.workers, tpots_s))
    if not variants:
        return None
    at_90 = bench.capacity(variants, 0.9)
    at_99 = bench.capacity(variants, 0.99, at_90.rps * (1 + PRECISION)) if at_90.rps else at_90
    return _record(scenario, name, bench, at_90, at_99, bench.load)


def labels(bench: Bench, tpots_s: tuple[float, ...], name: str) -> list[str]:
    """Return the labels of the variants of a policy, of whose capacities the best is taken."""
    if name == BOUND:
        return []
    return [variant.label for variant in policy(name)(Setting(bench.machine, bench.workers, tpots_s))]


def sweep(bench: Bench, tpots_s: tuple[float, ...], of: CapacityRecord) -> Iterator[RateRecord]:
    """Simulate the variant that reached a capacity at the rates of `SWEEP` around it.

    Yields nothing for the bound, or where the capacity is 0.
    """
    if of.policy == BOUND or not of.capacity_90_rps_per_gpu:
        return
    variants = policy(of.policy)(Setting(bench.machine, bench.workers, tpots_s))
    (variant,) = (each for each in variants if each.label == of.variant_90)
    for factor in SWEEP:
        rate_rps = factor * of.capacity_90_rps_per_gpu * bench.gpus
        yield _rated(of.scenario, of.policy, bench, rate_rps, bench.run(variant, rate_rps))


def changed(
    scenario: str, bench: Bench, tpots_s: tuple[float, ...], changes: Mapping[str, Choices], rate_rps: float
) -> Iterator[RateRecord]:
    """Ours at one rate, with something changed; where workers are split, with the best ratio."""
    for change, choices in changes.items():
        if not choices.speculation and not bench.machine.max_draft_tokens:
            continue
        name = OURS[list(Roles).index(choices.roles)]
        variants = policy(name)(Setting(bench.machine, bench.workers, tpots_s, choices))
        if choices.roles is Roles.COLOCATED:
            # As it is said, not tuned further.
            variants = variants[:1]
        outcomes = [bench.run(variant, rate_rps) for variant in variants]
        if outcomes:
            best = max(outcomes, key=lambda outcome: outcome.attainment)
            yield _rated(scenario, name, bench, rate_rps, best, change)


def scaling(
    scenario: str, bench: Bench, tpots_s: tuple[float, ...], rps_per_gpu: float
) -> Iterator[tuple[RateRecord, float]]:
    """Simulate ours and the paper's planner at one rate per GPU on more and more workers.

    Yields each outcome with the CPU time that simulating a request took, in milliseconds.
    """
    for workers in REPLICAS:
        here = replace(bench, workers=workers)
        for name in (OURS[-1], PAPER):
            variant = policy(name)(Setting(here.machine, workers, tpots_s))[0]
            rate_rps = rps_per_gpu * here.gpus
            load = here.load(rate_rps)
            began_s = time.process_time()
            outcome = here.run(variant, rate_rps)
            cpu_ms = 1e3 * (time.process_time() - began_s) / sum(session.rounds for session in load.offered)
            yield _rated(scenario, name, here, rate_rps, outcome, f"{workers} workers"), cpu_ms


def _rated(
    scenario: str, name: str, bench: Bench, rate_rps: float, outcome: RunOutcome, change: str = ""
) -> RateRecord:
    return RateRecord(
        scenario,
        name,
        bench.gpus,
        round(rate_rps, 4),
        round(outcome.attainment, 4),
        round(outcome.goodput_rps, 4),
        outcome.guaranteed,
        outcome.guaranteed_kept,
        outcome.offered,
        bench.machine.name,
        change,
    )


def _record(
    scenario: str, name: str, bench: Bench, at_90: Capacity, at_99: Capacity, offer: Callable[[float], Load]
) -> CapacityRecord:
    load = offer(at_90.rps) if at_90.rps else None
    return CapacityRecord(
        scenario,
        name,
        bench.gpus,
        round(at_90.rps / bench.gpus, 4),
        round(at_99.rps / bench.gpus, 4),
        bench.machine.name,
        load.requests if load is not None else 0,
        round(load.seconds, 1) if load is not None else 0.0,
        at_90.label,
        at_99.label,
    )
