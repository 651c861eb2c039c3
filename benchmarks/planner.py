"""How long a planning round takes, and how good its plan is.

    python -m benchmarks.planner [--json PATH] [--quick] [--sweep N]

Two kinds of cluster with one prefill worker: `pair` (beside a decode worker) and `colocated` (one worker for both,
where every request taken changes what the next finds). The cost model is 0.4 times what is known of Qwen2.5-7B on an
A100, so that 512 decodes fit 50 ms. Every call plans another instance. Compilation is timed apart. `p99_busy_us` is
processor time: what other programs on the machine did not take. The optimum comes from trying every subset up to
`EXACT` candidates, and is an upper bound by CP-SAT beyond (`optimum_is` says which; where both are known, the bound is
2 to 14 % above the optimum).

`--sweep N` plans N random instances of every kind instead, against every subset and a step-by-step replay of each plan.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.machine import machine, write_records
from benchmarks.planner_instances import Kind, draw, value_of
from benchmarks.planner_subsets import best_value
from services.slo.planner import Candidate, Link, Problem, PromisedPrefill, Topology, Worker, plan_round
from services.terminal.console import make_console

PENDING = (1, 4, 16, 64, 256)
"""Numbers of candidates that are measured."""
RUNNING = (0, 32, 128, 512)
"""Numbers of running decodes that are measured."""
WORKERS = (2, 8, 32, 100, 320, 1000)
"""Sizes of a pool that are measured."""
EXACT = 8
"""Number of candidates up to which every subset is tried; with drafts that takes long beyond."""
TARGETS_US = {(64, 512): 1_000.0, (256, 512): 4_000.0}
"""Microseconds that 99 % of rounds should stay within, by number of candidates and of running decodes."""

console = make_console()


def main() -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer instances, no optimum beyond every subset")
    parser.add_argument("--sweep", type=int, metavar="N", default=0)
    arguments = parser.parse_args()
    if arguments.sweep:
        sweep(arguments.sweep)
    else:
        run(arguments.json, arguments.quick)


def run(json_path: Path | None, quick: bool) -> None:
    """Measure, print, and write the records."""
    first_s, unit_us = _compile()
    console.print(
        f"first round, compiled code loaded or compiled: {first_s:.1f} s; a unit of work: {unit_us * 1e3:.0f} ns"
    )
    records = [_measure(kind, quick) for kind in _kinds(quick)]
    console.print(_table(records))
    scaling = [_measure_workers(workers, quick) for workers in WORKERS]
    console.print(_scaling_table(scaling))
    for (pending, running), target_us in TARGETS_US.items():
        reached = [r["p99_us"] for r in records if (r["pending"], r["running"]) == (pending, running)]
        if reached:
            busy = [r["p99_busy_us"] for r in records if (r["pending"], r["running"]) == (pending, running)]
            console.print(
                f"{pending} pending, {running} running: p99 {min(reached):.0f} to {max(reached):.0f} us, of processor "
                f"time {min(busy):.0f} to {max(busy):.0f} us (target {target_us:.0f})"
            )
    console.print(machine())
    write_records(json_path, [*records, *scaling])


def _kinds(quick: bool) -> Iterator[Kind]:
    """Yield the kinds of instances that are measured."""
    running = (0, 512) if quick else RUNNING
    for colocated, speculative, tiers in itertools.product((False, True), (False, True), (2, 4)):
        for pending, decodes in itertools.product(PENDING, running):
            yield Kind(pending, tiers, speculative, colocated, equal_values=False, running=decodes)


def _compile() -> tuple[float, float]:
    """Return the seconds of a first round through all compiled code, and the microseconds of a unit of work."""
    began_s = time.perf_counter()
    problem = draw(Kind(40, colocated=True, equal_values=False), 0)
    plan_round(problem)
    plan_round(draw(Kind(8), 0))
    first_s = time.perf_counter() - began_s
    few, many = replace(problem, work_limit=2_000), replace(problem, work_limit=20_000)
    spent = plan_round(many).work - plan_round(few).work
    seconds = _median_us(lambda: plan_round(many), 20) - _median_us(lambda: plan_round(few), 20)
    return first_s, seconds / max(1, spent)


def _median_us(call: Callable[[], object], times: int) -> float:
    """Return the median duration of so many calls in microseconds."""
    return statistics.median(_timed_us(call) for _ in range(times))


def _timed_us(call: Callable[[], object]) -> float:
    """Return the duration of a call in microseconds."""
    began_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began_ns) / 1e3


def _measure(kind: Kind, quick: bool) -> dict[str, Any]:
    """Measure rounds of one kind."""
    instances = 25 if quick else 200
    problems = [draw(kind, seed) for seed in range(instances)]
    gc.collect()
    gc.freeze()  # What the benchmark itself holds is not the round's to scan; collection as such stays on.
    plan_round(problems[0])
    durations_us, busy_us = [], []
    for problem in problems:
        # The arrays of a worker are built once for as long as it does not change.
        for worker in problem.workers:
            _ = worker.row, worker.jobs
        began_ns, began_busy_ns = time.perf_counter_ns(), time.thread_time_ns()
        plan_round(problem)
        busy_us.append((time.thread_time_ns() - began_busy_ns) / 1e3)
        durations_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    judged = problems[: 10 if kind.pending <= EXACT and not kind.speculative else 3]
    optimum, optimum_is = _optimum(kind, judged, quick)
    return {
        "mode": "colocated" if kind.colocated else "pair",
        "pending": kind.pending,
        "running": kind.running,
        "tiers": kind.tiers,
        "speculative": kind.speculative,
        "workers": len(problems[0].workers),
        "p50_us": statistics.median(durations_us),
        "p99_us": float(np.percentile(durations_us, 99)),
        "p99_busy_us": float(np.percentile(busy_us, 99)),
        "value": sum(value_of(problem, plan_round(problem)) for problem in judged) / len(judged),
        "optimal_value": None if optimum is None else optimum / len(judged),
        "optimum_is": optimum_is,
    }


def _optimum(kind: Kind, problems: Sequence[Problem], quick: bool) -> tuple[float | None, str | None]:
    """Return the value of the best plans together, and whether that is exact or an upper bound; None if unknown."""
    if kind.pending <= EXACT and not (kind.speculative and kind.tiers == 4 and quick):
        return sum(best_value(problem) for problem in problems), "exact"
    if quick:
        return None, None
    from benchmarks.planner_bound import upper_bound

    bounds = [upper_bound(problem, seconds=1.0) for problem in problems]
    if any(bound is None for bound in bounds):
        return None, None
    return sum(bound for bound in bounds if bound is not None), "upper bound"


def _measure_workers(workers: int, quick: bool) -> dict[str, Any]:
    """Measure rounds of one request in a pool that is half busy, half of it prefill workers."""
    profile = draw(Kind(1, tiers=2), 0).workers[0].profile
    rng = np.random.default_rng(workers)
    pool = [
        Worker(
            f"p{index}",
            profile,
            True,
            False,
            200_000,
            200_000,
            promised=tuple(
                PromisedPrefill(float(rng.uniform(0.1, 1.0)), int(rng.integers(100, 3000))) for _ in range(4)
            ),
        )
        for index in range(workers // 2)
    ] + [
        Worker(f"d{index}", profile, False, True, 500_000, 900_000, (50, 50), (40_000, 40_000))
        for index in range(workers // 2)
    ]
    topology = Topology.of(pool, Link(0.001, 10e9), kv_bytes_per_token=50e3)
    problems = [
        Problem(
            pool,
            topology,
            (Candidate(f"c{seed}", int(rng.integers(50, 3000)), 4000, float(rng.uniform(0.1, 1.0)), seed % 2),),
            seed=seed,
        )
        for seed in range(100 if quick else 1000)
    ]
    for problem in problems:
        plan_round(problem)
    outcomes_us, value = [], 0.0
    for problem in problems:
        began_ns = time.perf_counter_ns()
        outcome = plan_round(problem)
        outcomes_us.append((time.perf_counter_ns() - began_ns) / 1e3)
        value += value_of(problem, outcome)
    return {
        "mode": "pool",
        "pending": 1,
        "running": 100,
        "tiers": 2,
        "speculative": False,
        "workers": workers,
        "p50_us": statistics.median(outcomes_us),
        "p99_us": float(np.percentile(outcomes_us, 99)),
        "p99_busy_us": None,
        "value": value / len(problems),
        "optimal_value": None,
        "optimum_is": None,
    }


def _table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the durations and values of every kind as a table."""
    table = Table(title="One round, us: p50/p99, % of the optimum (>: of an upper bound)")
    for title in ("mode", "tiers", "drafts", "running", *(f"{pending} pending" for pending in PENDING)):
        table.add_column(title, justify="right")
    key = ("mode", "tiers", "speculative", "running")
    for group, members in itertools.groupby(
        sorted(records, key=lambda r: (*(r[name] for name in key), r["pending"])),
        key=lambda r: tuple(r[name] for name in key),
    ):
        cells = []
        for record in members:
            share = ""
            if record["optimal_value"]:
                sign = "" if record["optimum_is"] == "exact" else ">"
                share = f"\n{sign}{100 * record['value'] / record['optimal_value']:.1f} %"
            cells.append(f"{record['p50_us']:.0f}/{record['p99_us']:.0f}{share}")
        mode, tiers, speculative, running = group
        table.add_row(mode, str(tiers), "yes" if speculative else "no", str(running), *cells)
    return table


def _scaling_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the durations by size of the pool as a table."""
    table = Table(title="One request in a pool of workers")
    for title in ("workers", "p50, us", "p99, us", "guaranteed"):
        table.add_column(title, justify="right")
    for record in records:
        table.add_row(
            str(record["workers"]),
            f"{record['p50_us']:.0f}",
            f"{record['p99_us']:.0f}",
            f"{100 * record['value']:.1f} %",
        )
    return table


def sweep(instances: int) -> None:
    """Plan random instances of every kind; show promises broken in a replay, share of the optimum, and worst case."""
    from tests.unit.services.slo.planner.replay import replay_round

    table = Table(title=f"{instances} instances a row")
    for title in ("kind", "promises", "broken", "of the optimum", "worst"):
        table.add_column(title, justify="right")
    for colocated, (speculative, tiers), equal in itertools.product(
        (False, True), ((False, 1), (False, 2), (False, 4), (True, 1), (True, 2)), (True, False)
    ):
        for extra in ({}, {"running": 200}, {"tight_memory": True}, {"roofline": True}, {"pending": 14}):
            changes = {
                "pending": 8,
                "tiers": tiers,
                "speculative": speculative,
                "colocated": colocated,
                "equal_values": equal,
                **extra,
            }
            kind = Kind(**changes)  # type: ignore[arg-type]
            promises = broken = 0
            value, optimum, worst = 0.0, 0.0, 1.0
            for seed in range(instances):
                problem = draw(kind, 50_000 + seed)
                outcome = plan_round(problem)
                promises += sum(decision.guaranteed for decision in outcome.decisions)
                broken += len(replay_round(problem, outcome))
                best = best_value(problem)
                reached = value_of(problem, outcome)
                value, optimum = value + reached, optimum + best
                worst = min(worst, reached / best if best else 1.0)
            name = " ".join(f"{key}={shown}" for key, shown in changes.items())
            table.add_row(name, str(promises), str(broken), f"{100 * value / max(optimum, 1e-9):.2f} %", f"{worst:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
