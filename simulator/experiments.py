"""What is compared: capacities of policies, sweeps of rates, and one thing at a time taken out of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.slo.composer import Policy
from simulator.belief import Knowledge
from simulator.capacity import Bench
from simulator.policies.catalogue import OURS, Setting, Variant, policy
from simulator.policies.choices import Choices

BOUND = "clairvoyant-bound"
ABLATIONS: Mapping[str, Choices] = {
    "whole": Choices(),
    "without admission control": Choices(admission=False),
    "room held for newcomers": Choices(newcomers=1.0),
    "streams ahead sit out": Choices(policy=Policy(skips=True)),
    "half a TPOT kept ahead": Choices(policy=Policy(buffer=0.5)),
    "without step composition": Choices(composition=False),
    "without speculation": Choices(speculation=False),
    "without best effort": Choices(best_effort=False),
    "ring routing": Choices(ring=True),
}
"""Co-located, where every worker prefills on slack; leaving that out is `ours-disaggregated`."""
SENSITIVITY: Mapping[str, Choices] = {
    "lengths known": Choices(knowledge=Knowledge(lengths=True)),
    **{
        f"step times {error:+.0%}, never learnt": Choices(knowledge=Knowledge(error=error, learns=False))
        for error in (0.0, 0.1, 0.2, 0.4, -0.1, -0.2, -0.4)
    },
}
SWEEP = (0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6, 2.0)
"""Rates of a sweep, as multiples of a capacity."""


@dataclass(frozen=True, slots=True)
class CapacityRecord:
    scenario: str
    policy: str
    gpus: int
    capacity_90_rps_per_gpu: float
    capacity_99_rps_per_gpu: float
    machine: str
    requests: int
    variant_90: str = ""
    variant_99: str = ""


@dataclass(frozen=True, slots=True)
class RateRecord:
    scenario: str
    policy: str
    gpus: int
    rate: float
    """Requests per second of all GPUs."""
    attainment: float
    goodput_rps: float
    guaranteed: int
    guaranteed_kept: int
    offered: int
    machine: str


def capacities(
    scenario: str, bench: Bench, tpots_s: tuple[float, ...], policies: Sequence[str]
) -> Iterator[CapacityRecord]:
    """Of each policy that can be had on this machine, as they are found; and of the bound."""
    for name in policies:
        if name == BOUND:
            yield _record(scenario, name, bench, (bench.bound(0.9), bench.bound(0.99)), ("", ""))
            continue
        variants = policy(name)(Setting(bench.machine, bench.workers, tpots_s))
        if variants:
            best = [bench.capacity(variants, attainment) for attainment in (0.9, 0.99)]
            yield _record(scenario, name, bench, (best[0].rps, best[1].rps), (best[0].label, best[1].label))


def changed(
    scenario: str, bench: Bench, tpots_s: tuple[float, ...], experiments: Mapping[str, Choices]
) -> Iterator[CapacityRecord]:
    """Capacities of ours, co-located, with something changed."""
    for name, choices in experiments.items():
        if not choices.speculation and not bench.machine.max_draft_tokens:
            continue
        variants = policy(OURS[-1])(Setting(bench.machine, bench.workers, tpots_s, choices))
        found = (bench.capacity(variants, 0.9).rps, bench.capacity(variants, 0.99).rps)
        yield _record(scenario, name, bench, found, ("", ""))


def sweep(
    scenario: str, bench: Bench, tpots_s: tuple[float, ...], name: str, rates_rps: Sequence[float], label: str = ""
) -> Iterator[RateRecord]:
    """Attainment and goodput at these rates, of the variant of that label."""
    variants = policy(name)(Setting(bench.machine, bench.workers, tpots_s))
    variant: Variant | None = next((each for each in variants if each.label == label), None)
    if variant is None:
        return
    for rate_rps in rates_rps:
        outcome = bench.run(variant, rate_rps)
        yield RateRecord(
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
        )


def scaled(bench: Bench, workers: int) -> Bench:
    """The same requests on more workers."""
    return replace(bench, workers=workers)


def _record(
    scenario: str, name: str, bench: Bench, rps: tuple[float, float], labels: tuple[str, str]
) -> CapacityRecord:
    return CapacityRecord(
        scenario,
        name,
        bench.gpus,
        round(rps[0] / bench.gpus, 4),
        round(rps[1] / bench.gpus, 4),
        bench.machine.name,
        bench.requests,
        *labels,
    )
