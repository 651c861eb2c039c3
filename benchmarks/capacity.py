"""Capacity of a simulated cluster under every policy, on one workload after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.capacity_records import CODE, Found, Kept, codes_of, files_of, made_by_other_code, read, write
from simulator.capacity import Bench
from simulator.experiments import ABLATIONS, BOUND, SENSITIVITY, capacity, changed, labels, scaling, sweep
from simulator.machine import Machine, machine
from simulator.pictures import plot_overview, plot_sweeps
from simulator.policies.catalogue import OURS, POLICIES
from simulator.report import NOTE, capacity_table, change_table, rate_table
from simulator.request import OfferedRequest
from simulator.scenarios import SCENARIOS, from_trace, scenario
from simulator.traces import read_trace
from simulator.traffic import Traffic, Window, generated, repeated

EXPERIMENTS = ("ablation", "sensitivity", "scaling")
NEAR_CAPACITY, AT_REPLICAS = 1.0, 0.8
"""Shares of the capacity of ours at 90 % at which experiments run."""


@dataclass(frozen=True, slots=True)
class CapacityQuery:
    """What is to be found."""

    scenarios: Sequence[str]
    policies: Sequence[str]
    traces: Mapping[str, Path]
    machine: str
    gpus: int
    window: Window
    seed: int
    experiments: Sequence[str]
    rates: bool


def tpots_of(offered: Sequence[OfferedRequest]) -> tuple[float, ...]:
    """All targets of a workload, ascending."""
    contracts = {id(request.contract): request.contract for request in offered}.values()
    return tuple(sorted({target.tpot_s for c in contracts for target in (*c.decode, *c.final_decode)}))


def traffic(name: str, traces: Mapping[str, Path], seed: int) -> Traffic:
    """From the scenario's trace if there is one, else made up."""
    if name in traces:
        return repeated(from_trace(read_trace(traces[name]), name))
    return generated(scenario(name), seed)


def run(query: CapacityQuery, json: Path | None, keep: Path | None, directory: Path | None) -> None:
    """Print a table for each kind of figure; write records and pictures where asked.

    Args:
        keep: a directory for what is found, piece by piece; what lies there already is not simulated again.

    Raises:
        TraceError, UnknownHardwareError, UnknownMachineError
        RecordsError, OSError: a file in `keep` cannot be read.
    """
    console = Console(width=180)
    hardware = machine(query.machine)
    console.print(f"{_workers(query, hardware)} workers of {query.machine}, seed {query.seed}; {NOTE}")
    began_s = time.process_time()
    found = Found()
    with _progress(console) as progress:
        for name in query.scenarios:
            found.add(_scenario(query, hardware, name, keep, progress))
    console.print(f"{time.process_time() - began_s:.0f} s of one core")
    if json is not None:
        write(found, json, {**_settings(query, ""), CODE: codes_of((*query.policies, *query.experiments))})
    _show(console, found, directory)


def again(paths: Sequence[Path], directory: Path | None) -> None:
    """Tables and pictures of records that were written before; a directory stands for all that is in it.

    Raises:
        RecordsError: a file holds no such records.
        OSError: a file cannot be read.
    """
    found, console = Found(), Console(width=180)
    for file in files_of(paths):
        here, settings = read(file)
        found.add(here)
        for what in made_by_other_code(here, settings):
            _print(console, f"{file.name}: {what} may have other figures now, the code is not the one that made these")
    found.capacities.sort(key=lambda record: (_place(record.scenario), _rank(record.policy)))
    found.rates.sort(key=lambda record: (_place(record.scenario), _rank(record.policy)))
    _show(console, found, directory)


def known_scenarios() -> Sequence[str]:
    return list(SCENARIOS)


def known_policies() -> Sequence[str]:
    return [*POLICIES, BOUND]


def _place(name: str) -> int:
    return known_scenarios().index(name)


def _rank(name: str) -> int:
    return known_policies().index(name)


def _workers(query: CapacityQuery, hardware: Machine) -> int:
    return max(1, query.gpus // hardware.gpus)


def _settings(query: CapacityQuery, name: str) -> dict[str, object]:
    trace = query.traces.get(name)
    return {
        "window": asdict(query.window),
        "seed": query.seed,
        "rates": query.rates,
        "trace": trace.name if trace is not None else "",
    }


def _scenario(query: CapacityQuery, hardware: Machine, name: str, keep: Path | None, progress: Progress) -> Found:
    source = traffic(name, query.traces, query.seed)
    bench = Bench(hardware, _workers(query, hardware), source, query.window, query.seed)
    tpots_s = tpots_of(source.sessions(query.window.least))
    kept = Kept(keep, _settings(query, name))
    where = f"{query.machine}-{query.gpus}-{name}"
    task = progress.add_task(name, total=len(query.policies) + len(query.experiments))

    def one_policy(policy: str) -> Found:
        record = capacity(name, bench, tpots_s, policy)
        if record is None:
            return Found()
        return Found([record], list(sweep(bench, tpots_s, record)) if query.rates else [])

    def piece(policy: str) -> Found:
        return kept.piece(where, policy, lambda: one_policy(policy), variants=labels(bench, tpots_s, policy))

    found = Found()
    for policy in query.policies:
        progress.update(task, description=f"{name}, {policy}")
        found.add(piece(policy))
        progress.advance(task)
    for experiment in query.experiments:
        progress.update(task, description=f"{name}, {experiment}")
        (ours,) = piece(OURS[-1]).capacities
        rps_per_gpu = ours.capacity_90_rps_per_gpu
        found.add(
            kept.piece(
                where,
                experiment,
                lambda kind=experiment, rps=rps_per_gpu: _experiment(kind, name, bench, tpots_s, rps),  # type: ignore[misc]
            )
        )
        progress.advance(task)
    progress.update(task, description=name)
    return found


def _experiment(kind: str, name: str, bench: Bench, tpots_s: tuple[float, ...], rps_per_gpu: float) -> Found:
    if kind == "scaling":
        cpu_ms = dict(scaling(name, bench, tpots_s, AT_REPLICAS * rps_per_gpu))
        return Found(changes={kind: list(cpu_ms)}, cpu_ms=cpu_ms)
    changes = ABLATIONS if kind == "ablation" else SENSITIVITY
    rate_rps = NEAR_CAPACITY * rps_per_gpu * bench.gpus
    return Found(changes={kind: list(changed(name, bench, tpots_s, changes, rate_rps))})


def _show(console: Console, found: Found, directory: Path | None) -> None:
    """Tables of each machine, and pictures if there is a directory for them."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(record.machine for record in found.capacities):
        here = [record for record in found.capacities if record.machine == name]
        for at_99 in (False, True):
            _print(console, f"{name}:\n{capacity_table(here, at_99=at_99)}\n")
        if directory is not None:
            plot_overview(here, directory / f"capacity-{name}.svg")
    for experiment, changes in found.changes.items():
        for name in dict.fromkeys(record.machine for record in changes):
            here_changed = [record for record in changes if record.machine == name]
            cpu_ms = {record: ms for record, ms in found.cpu_ms.items() if record in here_changed}
            _print(console, f"{experiment}, {name}:\n{change_table(here_changed, cpu_ms)}\n")
    for name in dict.fromkeys(record.machine for record in found.rates):
        swept = [record for record in found.rates if record.machine == name]
        _print(console, f"{name}:\n{rate_table(swept)}\n")
        if directory is not None:
            plot_sweeps(swept, directory / f"rates-{name}.svg")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)
