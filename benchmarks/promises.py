"""Whether promises are kept: the share of guarantees kept, the coverage of bounds, and what overload does.

On a cluster of real processes, with emulated engines whose step times are noisy and slower than they announce, or with
real vLLM.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.load.driving import drive
from benchmarks.load.exchange import End, Exchange, Verdict
from benchmarks.load.grpc_wire import GrpcWire
from benchmarks.load.schedule import Bounds, Schedule, of_applications
from benchmarks.machine import machine, write_records
from benchmarks.prompts import DEFAULT_RANGE
from benchmarks.workload import mean_prompt_tokens
from deploy.local.cluster import LocalCluster
from services.config.load import load_settings
from services.config.settings import Settings
from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceModel
from slos_serve import AsyncClient, RetryPolicy
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

log = logging.getLogger(__name__)

SLOWDOWN = 10.0
"""Emulated steps take so many times the default: eight workers and their clients then fit on two cores."""
LOADS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
WARM_UP_LOAD = 0.5
PATIENCE_S = 600.0
"""Everything ends, late as it may be; only a hung cluster would not."""

EMULATED = f"""
[launcher]
run_dir = "{{run_dir}}"
prefill = {{prefill}}
decode = {{decode}}
[router]
port = 0
local_prefill = {{local_prefill}}
[engine]
kind = "emulated"
[engine.emulated]
time_scale = {SLOWDOWN}
step_time_noise = 0.1
step_cap_s = {0.06 * SLOWDOWN}
announced_error = 0.7
[profiles.chatbot]
prefill = {{{{ max_slowdown = 5 }}}}
decode = [{{{{ tpot_s = {0.1 * SLOWDOWN} }}}}]
[profiles.coder]
prefill = {{{{ max_slowdown = 5 }}}}
decode = [{{{{ tpot_s = {0.05 * SLOWDOWN} }}}}]
[profiles.summarizer]
prefill = {{{{ max_slowdown = 3 }}}}
decode = [{{{{ tpot_s = {0.1 * SLOWDOWN} }}}}]
"""
"""The paper's targets, slowed down like the engines."""

REAL = """
[launcher]
run_dir = "{run_dir}"
prefill = {prefill}
decode = {decode}
[router]
port = 0
local_prefill = {local_prefill}
[profiles.chatbot]
prefill = {{ max_slowdown = 5 }}
decode = [{{ tpot_s = 0.5 }}]
[profiles.coder]
prefill = {{ max_slowdown = 5 }}
decode = [{{ tpot_s = 0.3 }}]
[profiles.summarizer]
prefill = {{ max_slowdown = 3 }}
decode = [{{ tpot_s = 0.5 }}]
"""
"""SmolLM2 on one core a worker: an idle step takes 40 ms, a hand-over to a busy worker three or more of them."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load and what became of it."""

    load: float
    """Multiple of what the prefill workers can compute at all."""
    offered_rps: float
    offered: int
    guaranteed: int
    best_effort: int
    refused: int
    errors: int
    kept: int
    """Number of guarantees kept."""
    attained: int
    """Contracts kept, promised or not."""
    kept_share: float
    attainment: float
    """Attained of offered; refusals count as misses."""
    attained_rps: float
    """Attained per second of offering."""
    ttft_bound_coverage: float
    """Share of the guaranteed whose first token came no later than the predicted bound."""
    tpot_bound_coverage: float
    step_bound_coverage: float
    """Share of engine steps within the bound for 99 % that was predicted before each."""
    planning_ms: float
    """A planning round in the mean, problem building included."""


def run(
    json_path: Path | None,
    seconds: float,
    workers: int,
    loads: Sequence[float],
    plot: Path | None,
    *,
    real: bool = False,
    colocated: bool = False,
) -> None:
    """
    Args:
        colocated: no prefill workers, and twice as many decode workers, which compute their prompts.
    """
    console = Console(width=150)
    engines = "vLLM, SmolLM2-135M" if real else "emulated engines"
    prefill, decode = (0, 2 * workers) if colocated else (workers, workers)
    console.print(f"{machine()}; {engines}, {prefill} prefill and {decode} decode workers")
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "cluster.toml"
        config.write_text(
            (REAL if real else EMULATED).format(
                run_dir=Path(directory) / "run", prefill=prefill, decode=decode, local_prefill=str(colocated).lower()
            )
        )
        records = _measure(console, config, seconds, workers, loads)
    console.print(_table(records, engines))
    write_records(json_path, [asdict(record) | {"emulated": not real} for record in records])
    if plot is not None:
        _plot(records, plot, engines)
        console.print(f"plotted into {plot}")


def _measure(console: Console, config: Path, seconds: float, workers: int, loads: Sequence[float]) -> list[Load]:
    settings = load_settings(config)
    capacity_rps = workers / mean_prefill_s(settings)
    launcher = LocalCluster(settings, config, die_with_parent=True, report=log.info)
    running = launcher.start()
    records = []
    try:
        with Progress(console=console) as bar, grpc.insecure_channel(running.router_address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            for number, load in enumerate((WARM_UP_LOAD, *loads)):
                rate_rps = load * capacity_rps
                schedule = of_applications(rate_rps, 1.0, Bounds(seconds), seed=number)
                task = bar.add_task(f"{load:g} x {capacity_rps:.1f} requests/s", total=len(schedule.planned))
                before = _state(stub)
                exchanges = asyncio.run(offer(running.router_address, schedule, number, partial(bar.advance, task)))
                if number:
                    records.append(summary(load, rate_rps, seconds, exchanges, before, _state(stub)))
    finally:
        launcher.stop()
    return records


def mean_prefill_s(settings: Settings) -> float:
    """Return the seconds that a prompt of average length takes, alone in its step."""
    prompt = mean_prompt_tokens()
    if settings.engine.kind == "vllm":
        return PerformanceModel(SMOLLM2_135M_ONE_CORE).prefill_s(round(prompt), 2048)
    emulated = settings.engine.emulated
    return emulated.time_scale * (emulated.overhead_s + prompt * emulated.per_token_s)


async def offer(address: str, schedule: Schedule, seed: int, advance: Callable[[], None]) -> list[Exchange]:
    """Send a schedule to a router, and return what became of every request once all have ended."""
    wire = GrpcWire(AsyncClient(address, retry=RetryPolicy(max_attempts=1)), "", DEFAULT_RANGE, seed)
    try:
        run = await drive(
            wire, schedule, patience_s=PATIENCE_S, stop=asyncio.Event(), progress=lambda _exchange: advance()
        )
    finally:
        await wire.close()
    return list(run.exchanges)


def summary(
    load: float,
    rate_rps: float,
    seconds: float,
    exchanges: Sequence[Exchange],
    before: inference_pb2.ClusterState,
    after: inference_pb2.ClusterState,
) -> Load:
    """What became of one load, by the routers' own account."""
    told = [(e.answer, e.claims) for e in exchanges if e.answer is not None and e.claims is not None]
    guaranteed = [(answer, claims) for answer, claims in told if answer.verdict is Verdict.GUARANTEED]
    best_effort = [(answer, claims) for answer, claims in told if answer.verdict is Verdict.BEST_EFFORT]
    refused = sum(exchange.end is End.REFUSED for exchange in exchanges)
    kept = sum(claims.kept for _, claims in guaranteed)
    attained = kept + sum(claims.kept for _, claims in best_effort)
    within = sum(worker.steps * worker.step_bound_coverage for worker in after.workers)
    within -= sum(worker.steps * worker.step_bound_coverage for worker in before.workers)
    steps = sum(worker.steps for worker in after.workers) - sum(worker.steps for worker in before.workers)
    rounds = after.counters.rounds - before.counters.rounds
    return Load(
        load=load,
        offered_rps=rate_rps,
        offered=len(exchanges),
        guaranteed=len(guaranteed),
        best_effort=len(best_effort),
        refused=refused,
        errors=len(exchanges) - len(guaranteed) - len(best_effort) - refused,
        kept=kept,
        attained=attained,
        kept_share=kept / max(1, len(guaranteed)),
        attainment=attained / max(1, len(exchanges)),
        attained_rps=attained / seconds,
        ttft_bound_coverage=_share([c.ttft_s <= (a.ttft_bound_s or 0.0) for a, c in guaranteed]),
        tpot_bound_coverage=_share([c.tpot_s <= (a.tpot_bound_s or 0.0) for a, c in guaranteed]),
        step_bound_coverage=within / max(1, steps),
        planning_ms=(after.counters.planning_s - before.counters.planning_s) / max(1, rounds) * 1e3,
    )


def _share(held: Sequence[bool]) -> float:
    return sum(held) / len(held) if held else 1.0


def _state(stub: inference_pb2_grpc.InferenceStub) -> inference_pb2.ClusterState:
    return stub.GetClusterState(inference_pb2.GetClusterStateRequest(), timeout=10).state


def _table(records: Sequence[Load], engines: str) -> Table:
    table = Table(title=f"Promises under load ({engines})")
    columns: dict[str, Any] = {
        "load": "load",
        "offered_rps": "offered/s",
        "guaranteed": "guaranteed",
        "best_effort": "best effort",
        "refused": "refused",
        "kept_share": "kept",
        "attainment": "attainment",
        "attained_rps": "attained/s",
        "ttft_bound_coverage": "TTFT bound",
        "tpot_bound_coverage": "TPOT bound",
        "step_bound_coverage": "step bound",
        "planning_ms": "round ms",
    }
    for title in columns.values():
        table.add_column(title, justify="right")
    for record in records:
        values = asdict(record)
        table.add_row(*(_cell(name, values[name]) for name in columns))
    return table


def _cell(name: str, value: float) -> str:
    if name in {"kept_share", "attainment"} or name.endswith("coverage"):
        return f"{100 * value:.1f} %"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _plot(records: Sequence[Load], path: Path, engines: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    x = [record.offered_rps for record in records]
    axes.plot(x, x, color="0.8", label="offered")
    axes.plot(x, [record.attained_rps for record in records], marker="o", label="contracts kept")
    axes.plot(
        x,
        [record.kept / record.offered * record.offered_rps for record in records],
        marker="s",
        label="guarantees kept",
    )
    axes.set_xlabel("offered, requests/s")
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0, top=1.3 * max(record.attained_rps for record in records))
    axes.set_title(f"Contracts kept per second as load rises ({engines})")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
