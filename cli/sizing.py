"""The command `plan`, which simulates how many GPUs a contract needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    trace: Annotated[Path, typer.Option(help="Azure CSV or Mooncake JSONL.")],
    slo: Annotated[str, typer.Option(help="A profile, or ttft=0.5,tpot=0.05 (seconds), or slowdown=5,tpot=0.1.")],
    gpu: Annotated[str, typer.Option(help="Of the performance profile.")] = "A100",
    model: Annotated[str, typer.Option(help="Of the performance profile.")] = "Qwen2.5-7B",
    attainment: Annotated[float, typer.Option(min=0.01, max=0.999, help="Share of all requests.")] = 0.99,
    speed: Annotated[float, typer.Option(min=0.001, help="How much faster than recorded the trace comes.")] = 1.0,
    requests: Annotated[int, typer.Option(min=50, help="Of the trace, at most.")] = 5000,
    seed: int = 0,
    json: Annotated[Path | None, typer.Option("--json", help="Write the records here as well.")] = None,
) -> None:
    """Simulate the smallest cluster that keeps a contract for this traffic, and the curve that shows why."""
    from benchmarks.sizing import run
    from services.slo.contract import ContractError
    from simulator.machine import UnknownMachineError
    from simulator.sizing import NoSizeError
    from simulator.traces import TraceError

    try:
        run(trace, slo, gpu, model, attainment, speed, requests, seed, json)
    except (ContractError, NoSizeError, TraceError, UnknownMachineError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
