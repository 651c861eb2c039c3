"""`slos-serve bench router`: what a router process costs, and what binds it.

Stub workers stand in for engines, so that nothing but the router is measured. Router, workers and load generator share
the machine; figures are given by the wall clock and by the CPU time of the router alone.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_records
from benchmarks.router_cost.load import Spec
from benchmarks.router_cost.stage import Pools, Sample, Stage, floor, running
from services.config.load import load_settings

PROMPT = "The quick brown fox jumps over the lazy dog, and then it goes home and sleeps under a tree all day long. " * 2
"""About fifty tokens: text, so that tokenising is part of what is measured."""
TTFT_S = 2.0
TPOT_STEPS = 8.0
"""Promised TPOT in steps: every request asks for a promise, and a hand-over to a busy worker takes a few steps."""
TABLE_COLUMNS = 160
CLOCKWORK = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is offered."""

    name: str
    pools: Pools
    streams: int = 0
    rate_rps: float = 0.0
    output_tokens: int = 64
    warm_up_s: float = 4.0


LATENCY = tuple(
    Scenario(f"{streams} streams", Pools(step_s=step_s), streams=streams, output_tokens=tokens, warm_up_s=warm_up_s)
    for streams, step_s, tokens, warm_up_s in ((1, 0.1, 16, 2.0), (64, 0.1, 64, 4.0), (1024, 0.2, 64, 8.0))
)
SATURATION = (
    Scenario("tokens", Pools(step_s=0.02), streams=1024, output_tokens=512, warm_up_s=8.0),
    Scenario("requests", Pools(decode=4, step_s=0.02), streams=256, output_tokens=2, warm_up_s=3.0),
)

SCALING = (
    Scenario("tokens at a rate", Pools(step_s=0.2), streams=1024, output_tokens=64, warm_up_s=8.0),
    Scenario("requests at a rate", Pools(decode=4, step_s=0.02), rate_rps=300.0, output_tokens=2, warm_up_s=3.0),
)
"""Load for any number of processes, the same for all and less than one can take: what they cost each other is then
seen in CPU time, on a machine that is too small to give each a core.
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """One scenario against one server. Times in milliseconds."""

    scenario: str
    server: str
    """`router`, `direct`: straight to the workers, or `floor`: an empty grpc.aio server."""
    processes: int
    requests_per_s: float
    tokens_per_s: float
    messages_per_s: float
    cores: float
    """CPU seconds of the server's processes a second."""
    requests_per_cpu_s: float
    tokens_per_cpu_s: float
    token_p50_ms: float
    """From a worker's report to the client."""
    token_p99_ms: float
    first_p50_ms: float
    """Milliseconds of the time to the first token that are not the worker's, median."""
    first_p99_ms: float
    guaranteed: int
    finished: int
    failed: int
    wrong: int
    late_starts: int
    generator_cores: float
    workers_cores: float
    redis_cores: float


def run(json_path: Path | None, seconds: float, processes: Sequence[int], parts: Sequence[str]) -> None:
    console = Console(width=TABLE_COLUMNS)
    console.print(f"{machine()}; stub workers, 2 to prefill")
    costs: list[Cost] = []
    for more in _measure(seconds, processes, parts, console):
        costs += more
        # Whatever happens to the rest, what was measured is written.
        write_records(json_path, [asdict(cost) | {"emulated": True} for cost in costs])
    console.print(_table(costs))


def _measure(seconds: float, processes: Sequence[int], parts: Sequence[str], console: Console) -> Iterator[list[Cost]]:
    offered = {"latency": LATENCY, "scaling": SCALING, "saturation": SATURATION}
    scenarios = [scenario for part, scenarios in offered.items() if part in parts for scenario in scenarios]
    settings = load_settings(None)
    by_pools = itertools.groupby(scenarios, key=lambda scenario: scenario.pools)
    for (pools, together), count in itertools.product([(pools, list(group)) for pools, group in by_pools], processes):
        with (
            tempfile.TemporaryDirectory() as directory,
            running(Path(directory), CLOCKWORK / "slos-serve-bench-router", pools, settings, count) as stage,
        ):
            for scenario in together:
                console.print(f"{scenario.name}, {count} router processes", style="dim")
                yield _against_all(stage, scenario, seconds, others=count == processes[0] and "floor" in parts)


def _against_all(stage: Stage, scenario: Scenario, seconds: float, *, others: bool) -> list[Cost]:
    spec = Spec(
        addresses=(stage.router,),
        clockwork=str(stage.clockwork),
        run=f"router{time.time_ns()}",
        seconds=seconds,
        warm_up_s=scenario.warm_up_s,
        streams=scenario.streams,
        rate_rps=scenario.rate_rps,
        output_tokens=scenario.output_tokens,
        prompt=PROMPT,
        ttft_s=TTFT_S,
        tpot_s=TPOT_STEPS * stage.pools.step_s,
        connections=8 * stage.router_processes,
    )
    costs = [_cost(scenario, "router", stage, stage.measure(spec, ("router", "workers", "redis")))]
    if others:
        direct = replace(spec, addresses=stage.workers, run=f"direct{time.time_ns()}")
        direct = replace(direct, prefill_workers=stage.pools.prefill)
        costs.append(_cost(scenario, "direct", stage, stage.measure(direct, ("workers",))))
        with floor(stage) as address:
            spec = replace(spec, addresses=(address,), run=f"floor{time.time_ns()}")
            costs.append(_cost(scenario, "floor", stage, stage.measure(spec, ("floor",))))
    return costs


def _cost(scenario: Scenario, server: str, stage: Stage, sample: Sample) -> Cost:
    result, wall_s = sample.result, sample.wall_s
    cpu_s = sample.cpu_s.get(server, 0.0)
    return Cost(
        scenario=scenario.name,
        server=server,
        processes=stage.router_processes if server == "router" else 1,
        requests_per_s=result["finished"] / wall_s,
        tokens_per_s=result["tokens"] / wall_s,
        messages_per_s=result["messages"] / wall_s,
        cores=cpu_s / wall_s,
        requests_per_cpu_s=result["finished"] / cpu_s if cpu_s else 0.0,
        tokens_per_cpu_s=result["tokens"] / cpu_s if cpu_s else 0.0,
        token_p50_ms=result["token"]["p50_ms"],
        token_p99_ms=result["token"]["p99_ms"],
        first_p50_ms=result["first"]["p50_ms"],
        first_p99_ms=result["first"]["p99_ms"],
        guaranteed=result["guaranteed"],
        finished=result["finished"],
        failed=result["failed"],
        wrong=result["wrong"],
        late_starts=result["late_starts"],
        generator_cores=result["generator_cpu_share"],
        workers_cores=sample.cpu_s.get("workers", 0.0) / wall_s,
        redis_cores=sample.cpu_s.get("redis", 0.0) / wall_s,
    )


def _table(costs: Sequence[Cost]) -> Table:
    table = Table(title="What a router costs (stub workers)")
    for column in (
        *("scenario", "server", "requests/s", "tokens/s", "messages/s", "cores", "requests/CPU s", "tokens/CPU s"),
        *("token p50", "token p99", "first p50", "first p99"),
    ):
        table.add_column(column, justify="left" if column in {"scenario", "server"} else "right")
    for cost in costs:
        server = cost.server if cost.processes == 1 else f"{cost.processes} routers"
        rates = (cost.requests_per_s, cost.tokens_per_s, cost.messages_per_s)
        per_cpu = (cost.requests_per_cpu_s, cost.tokens_per_cpu_s)
        times = (cost.token_p50_ms, cost.token_p99_ms, cost.first_p50_ms, cost.first_p99_ms)
        table.add_row(
            cost.scenario,
            server,
            *(f"{rate:,.0f}" for rate in rates),
            f"{cost.cores:.2f}" if cost.cores else "",
            *(f"{rate:,.0f}" if rate else "" for rate in per_cpu),
            *(f"{time_ms:.2f} ms" for time_ms in times),
        )
    return table
