"""Capacity of a simulated cluster under every policy, on one workload after the other."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from simulator.capacity import Bench
from simulator.experiments import (
    ABLATIONS,
    BOUND,
    SENSITIVITY,
    SWEEP,
    CapacityRecord,
    RateRecord,
    capacities,
    changed,
    scaled,
    sweep,
)
from simulator.machine import machine
from simulator.policies.catalogue import OURS, POLICIES
from simulator.report import NOTE, capacity_table, plot_capacities, plot_sweeps, rate_table
from simulator.request import Offered
from simulator.scenarios import SCENARIOS, from_trace, generate, scenario
from simulator.traces import read_trace

EXPERIMENTS = ("ablation", "sensitivity", "scaling")
REPLICAS = (1, 2, 4, 8)

_Record = TypeVar("_Record")


def tpots_of(offered: Sequence[Offered]) -> tuple[float, ...]:
    """All targets of a workload, ascending."""
    contracts = {id(request.contract): request.contract for request in offered}.values()
    return tuple(sorted({target.tpot_s for c in contracts for target in (*c.decode, *c.final_decode)}))


def workload(name: str, traces: Mapping[str, Path], requests: int, seed: int) -> Sequence[Offered]:
    """From the scenario's trace if there is one, else made up."""
    if name in traces:
        return from_trace(read_trace(traces[name])[:requests], name)
    wanted = scenario(name)
    rounds = sum((application.rounds[0] + application.rounds[1]) / 2 for application in wanted.applications)
    return generate(wanted, max(1, int(requests * len(wanted.applications) / rounds)), seed)


def run(
    scenarios: Sequence[str],
    policies: Sequence[str],
    traces: Mapping[str, Path],
    machine_name: str,
    gpus: int,
    requests: int,
    seed: int,
    experiments: Sequence[str],
    rates: bool,
    json: Path | None,
    directory: Path | None,
) -> None:
    """Print a table for each kind of figure; write records and pictures where asked."""
    console = Console(width=180)
    hardware = machine(machine_name)
    workers = max(1, gpus // hardware.gpus)
    console.print(f"{workers} workers of {machine_name}, {requests} requests a scenario, seed {seed}; {NOTE}")
    began_s = time.monotonic()
    found: list[CapacityRecord] = []
    swept: list[RateRecord] = []
    others: dict[str, list[CapacityRecord]] = {}
    with _progress(console) as progress:
        for name in scenarios:
            bench = Bench(hardware, workers, workload(name, traces, requests, seed), seed)
            tpots_s = tpots_of(bench.offered)
            here = list(_followed(progress, name, len(policies), capacities(name, bench, tpots_s, policies)))
            found += here
            if rates:
                swept += _followed(progress, f"{name}, rates", 0, _sweeps(name, bench, tpots_s, here))
            for experiment in experiments:
                ran = _experiment(experiment, name, bench, tpots_s)
                others.setdefault(experiment, []).extend(_followed(progress, f"{name}, {experiment}", 0, ran))
    console.print(f"{time.monotonic() - began_s:.0f} s on one core")
    if json is not None:
        rows = [asdict(record) for record in found] + [asdict(record) for record in swept]
        rows += [{"experiment": kind, **asdict(record)} for kind, ran in others.items() for record in ran]
        json.write_text(json_format.dumps({"note": NOTE, "records": rows}, indent=1) + "\n")
    _show(console, found, swept, others, directory)


def again(files: Sequence[Path], directory: Path | None) -> None:
    """Tables and pictures of records that were written before, for instance scenario by scenario.

    Raises:
        ValueError: a file holds no such records.
        OSError: a file cannot be read.
    """
    found: list[CapacityRecord] = []
    swept: list[RateRecord] = []
    others: dict[str, list[CapacityRecord]] = {}
    for file in files:
        try:
            for row in json_format.loads(file.read_text())["records"]:
                experiment = row.pop("experiment", "")
                if "rate" in row:
                    swept.append(RateRecord(**row))
                elif experiment:
                    others.setdefault(experiment, []).append(CapacityRecord(**row))
                else:
                    found.append(CapacityRecord(**row))
        except (KeyError, TypeError, AttributeError, json_format.JSONDecodeError) as error:
            raise ValueError(f"{file}: no records of this benchmark ({error!r})") from error
    _show(Console(width=180), found, swept, others, directory)


def _show(
    console: Console,
    found: Sequence[CapacityRecord],
    swept: Sequence[RateRecord],
    others: Mapping[str, Sequence[CapacityRecord]],
    directory: Path | None,
) -> None:
    """Tables of each machine, and pictures if there is a directory for them."""
    for name in dict.fromkeys(record.machine for record in found):
        here = [record for record in found if record.machine == name]
        for at_99 in (False, True):
            console.print(f"{name}:\n{capacity_table(here, at_99=at_99)}\n", markup=False, soft_wrap=True)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            plot_capacities(here, directory / f"capacity-{name}.svg")
    for experiment, changes in others.items():
        console.print(f"{experiment}:\n{experiment_table(changes)}\n", markup=False, soft_wrap=True)
    if swept:
        console.print(rate_table(swept), markup=False, soft_wrap=True)
    if swept and directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(record.machine for record in swept):
            plot_sweeps([record for record in swept if record.machine == name], directory / f"rates-{name}.svg")


def experiment_table(records: Sequence[CapacityRecord]) -> str:
    """Markdown."""
    lines = [
        f"| scenario | ours, co-located ({NOTE}) | GPUs | requests/s per GPU at 90 % | at 99 % |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {r.scenario} | {r.policy} | {r.gpus} | {r.capacity_90_rps_per_gpu:.3f} | {r.capacity_99_rps_per_gpu:.3f} |"
        for r in records
    ]
    return "\n".join(lines)


def known_scenarios() -> Sequence[str]:
    return list(SCENARIOS)


def known_policies() -> Sequence[str]:
    return [*POLICIES, BOUND]


def _experiment(kind: str, name: str, bench: Bench, tpots_s: tuple[float, ...]) -> Iterator[CapacityRecord]:
    match kind:
        case "ablation":
            yield from changed(name, bench, tpots_s, ABLATIONS)
        case "sensitivity":
            yield from changed(name, bench, tpots_s, SENSITIVITY)
        case _:
            for replicas in REPLICAS:
                yield from capacities(name, scaled(bench, replicas), tpots_s, [OURS[-1], "slos-serve-paper"])


def _sweeps(
    name: str, bench: Bench, tpots_s: tuple[float, ...], found: Sequence[CapacityRecord]
) -> Iterator[RateRecord]:
    """Around the best capacity of ours, the same rates for all."""
    centre = max((r.capacity_90_rps_per_gpu for r in found if r.policy in OURS), default=0.0) * bench.gpus
    for record in found:
        if record.policy != BOUND and centre:
            rates = [factor * centre for factor in SWEEP]
            yield from sweep(name, bench, tpots_s, record.policy, rates, record.variant_90)


def _followed(progress: Progress, what: str, total: int, records: Iterable[_Record]) -> list[_Record]:
    task = progress.add_task(what, total=total or None)
    done = []
    for record in records:
        done.append(record)
        progress.advance(task)
    progress.update(task, total=len(done), completed=len(done))
    return done


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)
