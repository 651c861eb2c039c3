"""Whether tenants get their fair share of promises, and what that costs, on the same load with and without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.machine import write_records
from simulator.cluster import Cluster
from simulator.machine import Machine, machine
from simulator.policies.catalogue import Setting, policy
from simulator.policies.choices import Choices
from simulator.report import NOTE
from simulator.request import OfferedRequest
from simulator.scenarios import scenario
from simulator.tenants import TenantOutcome, jain_index, max_min_shares, outcomes, sent_by
from simulator.traffic import Load, Window, generated


@dataclass(frozen=True, slots=True)
class FairnessQuery:
    """What is simulated."""

    scenario: str
    layout: str
    """Name of one of this project's policies."""
    machine: str
    gpus: int
    rates: Sequence[float]
    """Requests per second of all tenants and GPUs."""
    arrivals: Mapping[str, float]
    """How often each tenant sends, relative to the others."""
    weights: Mapping[str, float]
    seeds: Sequence[int]
    seconds: float


@dataclass(frozen=True, slots=True)
class FairnessRecord:
    """What one tenant was promised in one run."""

    scenario: str
    layout: str
    rate: float
    seed: int
    fair_shares: bool
    tenant: str
    weight: float
    offered: int
    promised: int
    kept: int
    attained: int
    of_fair_share: float
    """Promised work, as a share of the max-min fair share of all work that was promised in the run."""
    total_offered: int
    total_promised: int
    total_attained: int
    jain: float
    """Jain's index of the tenants' shares of their fair shares."""


def tenants_of(given: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return arrivals and weights by tenant, from texts like `small=1` and `large=10:4`.

    Raises:
        ValueError: a text is of another form; the message says which.
    """
    arrivals, weights = {}, {}
    for text in given:
        name, _, numbers = text.partition("=")
        often, _, weight = numbers.partition(":")
        try:
            arrivals[name], weights[name] = float(often), float(weight or 1.0)
        except ValueError:
            raise ValueError(f"{text}: not NAME=ARRIVALS or NAME=ARRIVALS:WEIGHT") from None
        if not (name and 0 < arrivals[name] < math.inf and 0 < weights[name] < math.inf):
            raise ValueError(f"{text}: a tenant has a name, and its numbers are positive")
    return arrivals, weights


def run(query: FairnessQuery, json: Path | None) -> None:
    """Print what every tenant was promised with and without fair shares, and write the records where asked."""
    console = Console(width=170)
    hardware = machine(query.machine)
    records: list[FairnessRecord] = []
    console.print(f"{query.gpus // hardware.gpus} workers of {query.machine}, {query.layout}; {NOTE}")
    for rate in query.rates:
        for seed in query.seeds:
            for found in measured(query, hardware, rate, seed):
                records.append(found)
                console.print(_line(found))
    console.print(table(records))
    write_records(json, [asdict(record) | {"simulated": True} for record in records])


def measured(query: FairnessQuery, hardware: Machine, rate: float, seed: int) -> Iterator[FairnessRecord]:
    """Simulate one load without fair shares and with them, and yield a record of each tenant.

    What is not promised is refused, so that runs far above the capacity end.
    """
    load = Window(query.seconds, 100, 20_000).load(generated(scenario(query.scenario), seed), rate)
    sessions = sent_by(load.offered, query.arrivals, seed)
    for fair in (False, True):
        tenants = _simulated(query, hardware, load, sessions, seed, fair=fair)
        promised_s = sum(outcome.promised_work_s for outcome in tenants.values())
        demands = {name: outcome.offered_work_s for name, outcome in tenants.items()}
        shares = max_min_shares(demands, query.weights, promised_s)
        achieved = {name: outcome.promised_work_s / shares[name] for name, outcome in tenants.items()}
        for name, outcome in tenants.items():
            yield FairnessRecord(
                query.scenario,
                query.layout,
                rate,
                seed,
                fair,
                name,
                query.weights.get(name, 1.0),
                outcome.offered,
                outcome.promised,
                outcome.kept,
                outcome.attained,
                achieved[name],
                sum(each.offered for each in tenants.values()),
                sum(each.promised for each in tenants.values()),
                sum(each.attained for each in tenants.values()),
                jain_index(list(achieved.values())),
            )


def _simulated(
    query: FairnessQuery, hardware: Machine, load: Load, sessions: Sequence[OfferedRequest], seed: int, *, fair: bool
) -> dict[str, TenantOutcome]:
    wanted = scenario(query.scenario)
    tpots_s = tuple(sorted({target.tpot_s for c in wanted.contracts for target in (*c.decode, *c.final_decode)}))
    choices = Choices(best_effort=False, fair_shares=fair, tenant_weights=tuple(query.weights.items()))
    workers = query.gpus // hardware.gpus
    variants = policy(query.layout)(Setting(hardware, workers, tpots_s, choices))
    variant = variants[len(variants) // 2]
    cluster = Cluster(hardware, workers, variant.make, sessions, scored=load.scored, seed=seed, keep=True)
    return outcomes(cluster.run().requests, hardware)


def table(records: Sequence[FairnessRecord]) -> str:
    """Return, for each rate, the figures of all seeds together, in Markdown."""
    head = (
        f"| requests/s ({NOTE}) | fair shares | promised of offered, by tenant | of its fair share, by tenant "
        "| Jain's index | promised in all | contracts kept in all |"
    )
    arms = [(rate, fair) for rate in dict.fromkeys(record.rate for record in records) for fair in (False, True)]
    rows = [_row([record for record in records if (record.rate, record.fair_shares) == arm]) for arm in arms]
    return "\n".join((head, "|---:|---|---|---|---:|---:|---:|", *rows))


def _row(records: Sequence[FairnessRecord]) -> str:
    tenants = list(dict.fromkeys(record.tenant for record in records))
    by_tenant = {tenant: [record for record in records if record.tenant == tenant] for tenant in tenants}
    promised = [
        f"{tenant} {sum(r.promised for r in theirs)} of {sum(r.offered for r in theirs)}"
        for tenant, theirs in by_tenant.items()
    ]
    achieved = [
        f"{tenant} {math.fsum(r.of_fair_share for r in theirs) / len(theirs):.2f}"
        for tenant, theirs in by_tenant.items()
    ]
    runs = by_tenant[tenants[0]]
    jain = math.fsum(record.jain for record in runs) / len(runs)
    totals = sum(record.total_promised for record in runs), sum(record.total_attained for record in runs)
    return (
        f"| {runs[0].rate:g} | {'with' if runs[0].fair_shares else 'without'} | {', '.join(promised)} "
        f"| {', '.join(achieved)} | {jain:.3f} | {totals[0]} | {totals[1]} |"
    )


def _line(record: FairnessRecord) -> str:
    arm = "with" if record.fair_shares else "without"
    return (
        f"{record.rate:g} requests/s, seed {record.seed}, {arm}: {record.tenant} {record.promised} of {record.offered} "
        f"promised, {record.of_fair_share:.2f} of its fair share; "
        f"in all {record.total_promised} of {record.total_offered}"
    )
