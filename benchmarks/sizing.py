"""The smallest simulated cluster that keeps a promise, and the curve that shows why."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.requested_slo import parse_slo
from services.slo.contract import PAPER_PROFILES, ProfileBook
from simulator.machine import machine
from simulator.report import NOTE
from simulator.scenarios import from_trace
from simulator.sizing import NoSizeError, Size, profile_for, sizes, smallest, with_contract
from simulator.traces import read_trace


def run(
    trace: Path,
    slo: str,
    gpu: str,
    model: str,
    attainment: float,
    speed: float,
    requests: int,
    seed: int,
    json: Path | None,
) -> None:
    """
    Raises:
        ContractError, NoSizeError, TraceError, UnknownMachineError
    """
    console = Console(width=120)
    contract = parse_slo(slo).contract(ProfileBook(PAPER_PROFILES))
    profile = profile_for(model, gpu)
    hardware = machine(profile.name)
    traced = read_trace(trace)[:requests]
    offered = with_contract(from_trace(traced, "chatbot"), contract)
    rate_rps = speed * (len(traced) - 1) / max(traced[-1].at_s - traced[0].at_s, 1e-9)
    console.print(
        f"{len(offered)} requests of {trace.name} at {rate_rps:.2f}/s, {profile.name} ({profile.origin}), "
        f"{hardware.gpus} GPU a worker; {NOTE}"
    )
    tried: list[Size] = []
    failed: NoSizeError | None = None
    try:
        for size in sizes(hardware, offered, rate_rps, attainment, seed):
            tried.append(size)
            console.print(f"  {size.gpus} GPUs, {size.how}: {size.attainment:.2%}")
    except NoSizeError as error:
        failed = error
    if tried:
        console.print(_curve(tried, attainment))
    if json is not None:
        json.write_text(json_format.dumps({"note": NOTE, "records": [asdict(size) for size in tried]}, indent=1) + "\n")
    if failed is not None:
        raise failed
    best = smallest(tried)
    console.print(f"smallest: {best.workers} workers ({best.gpus} GPUs), {best.how}: {best.attainment:.2%} attained")


def _curve(tried: Sequence[Size], attainment: float) -> Table:
    table = Table("GPUs", "workers", "attained", f"of the {attainment:.0%} wanted")
    for size in sorted(tried, key=lambda size: (size.gpus, size.attainment)):
        bar = "#" * round(40 * size.attainment)
        table.add_row(str(size.gpus), size.how, f"{size.attainment:.2%}", bar + (" kept" if size.keeps else ""))
    return table
