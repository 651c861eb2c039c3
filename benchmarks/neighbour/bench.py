"""The same promised streams alone and beside a hostile client, in one run of one cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, real_engine, write_records
from benchmarks.neighbour.streams import Ended, Wanted, follow
from deploy.local.cluster import LocalCluster
from deploy.local.processes import RunningProcess
from services.config.load import load_settings
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

log = logging.getLogger(__name__)

LANES = 8
WARM_UP_S = 15.0
SAMPLE_S = 1.0
WRONG = ("INTERNAL", "UNKNOWN", "DATA_LOSS", "500", "502")
"""Outcomes of attacks that are no typed refusal: the program failed."""

EMULATED = """
[launcher]
run_dir = "{run_dir}"
gateway = true
prefill = 1
decode = 2
[router]
port = 0
[gateway]
port = 0
[console]
port = 0
[engine]
kind = "emulated"
[engine.emulated]
time_scale = 5
"""
"""Steps take five times the default, 40 ms and more, so that the machine has time for everybody."""

REAL = """
[launcher]
run_dir = "{run_dir}"
gateway = true
prefill = 1
decode = 1
[router]
port = 0
[gateway]
port = 0
[console]
port = 0
"""


@dataclass(slots=True)
class Phase:
    """What became of the streams of one part of the run, and of the router meanwhile."""

    name: str
    streams: int
    complete: int
    guaranteed: int
    kept: int
    restarts: int
    workers_lost: int
    errors: Mapping[str, int]
    missed: Sequence[str]
    """What the promises that were missed missed, in words."""
    rss_mib: Sequence[float]
    """Resident memory of the router's processes, second by second."""
    rss_slope_mib_per_min: float
    """Of a straight line through the second half."""
    attacks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def kept_share(self) -> float:
        """Promises kept of those made."""
        return self.kept / self.guaranteed if self.guaranteed else 1.0

    @property
    def wrong(self) -> int:
        """Attempts of the hostile client that were answered by a failure of the program."""
        return sum(counts.get(outcome, 0) for counts in self.attacks.values() for outcome in WRONG)


def run(
    json_path: Path | None, seconds: float, *, real: bool = False, ttft_s: float = 5.0, tpot_s: float = 0.5
) -> list[Phase]:
    """Measure and show both parts.

    Args:
        ttft_s, tpot_s: what the streams ask for; a machine that is slow or busy promises less.
    """
    console = Console(width=150)
    engines = real_engine() if real else "emulated engines"
    console.print(f"{machine()}; {engines}, {LANES} streams that ask for TTFT {ttft_s:g} s and TPOT {tpot_s:g} s")
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "cluster.toml"
        config.write_text((REAL if real else EMULATED).format(run_dir=Path(directory) / "run"))
        phases = measure(config, seconds, Wanted(ttft_s, tpot_s))
    for phase in phases:
        console.print(table_of_attacks(phase)) if phase.attacks else None
    console.print(table(phases, engines))
    records = [asdict(phase) | {"kept_share": phase.kept_share, "emulated": not real} for phase in phases]
    write_records(json_path, records)
    return phases


def measure(config: Path, seconds: float, wanted: Wanted) -> list[Phase]:
    """Start a cluster, and return what became of the streams alone and then beside the hostile client."""
    settings = load_settings(config)
    launcher = LocalCluster(settings, config, die_with_parent=True, report=log.info)
    running = launcher.start()
    router = next(process for process in running.processes if process.name == "router")
    try:
        asyncio.run(follow(running.router_address, LANES, min(WARM_UP_S, seconds), wanted))
        alone = asyncio.run(_phase("alone", running.router_address, "", router, seconds, wanted))
        beside = asyncio.run(_phase("beside", running.router_address, running.gateway_address, router, seconds, wanted))
    finally:
        launcher.stop()
    return [alone, beside]


async def _phase(
    name: str, address: str, gateway: str, router: RunningProcess, seconds: float, wanted: Wanted
) -> Phase:
    before = await _counters(address)
    hostile = _attacker(address, gateway, seconds) if gateway else None
    memory: list[float] = []
    sampling = asyncio.create_task(_sample(router, memory))
    try:
        ended = await follow(address, LANES, seconds, wanted)
    finally:
        sampling.cancel()
    attacks: dict[str, dict[str, int]] = {}
    if hostile is not None:
        output, _ = await asyncio.to_thread(hostile.communicate)
        attacks = json.loads(output)
    after = await _counters(address)
    return summary(name, ended, memory, after.workers_lost - before.workers_lost, attacks)


def _attacker(address: str, gateway: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.neighbour.attacker", address, gateway, str(seconds)]
    # It yields to the others, so that what is measured is what it does to the router, not that it shares the machine.
    return subprocess.Popen(["nice", "-n", "10", *command], stdout=subprocess.PIPE, text=True)


async def _counters(address: str) -> inference_pb2.Counters:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        answer = await stub.GetClusterState(inference_pb2.GetClusterStateRequest(), timeout=60)
        return answer.state.counters


async def _sample(router: RunningProcess, memory: list[float]) -> None:
    while True:
        process = router.process()
        if process is None:
            raise RuntimeError(f"the router has ended; its log says:\n{router.log_tail()}")
        family = [process, *process.children(recursive=True)]
        memory.append(sum(member.memory_info().rss for member in family) / 2**20)
        await asyncio.sleep(SAMPLE_S)


def summary(
    name: str,
    ended: Sequence[Ended],
    memory: Sequence[float],
    workers_lost: int,
    attacks: Mapping[str, Mapping[str, int]],
) -> Phase:
    """Sum up one part of the run."""
    promised = [one for one in ended if one.guaranteed]
    errors = [one.error for one in ended if one.error]
    return Phase(
        name=name,
        streams=len(ended),
        complete=sum(not one.error for one in ended),
        guaranteed=len(promised),
        kept=sum(one.kept for one in promised),
        restarts=sum(one.restarts for one in ended),
        workers_lost=workers_lost,
        errors={error: errors.count(error) for error in sorted(set(errors))},
        missed=[one.missed or one.error for one in promised if not one.kept],
        rss_mib=[round(mebibytes, 1) for mebibytes in memory],
        rss_slope_mib_per_min=_slope(memory[len(memory) // 2 :]),
        attacks=attacks,
    )


def _slope(memory: Sequence[float]) -> float:
    """Return MiB a minute of a straight line through samples taken once in `SAMPLE_S`."""
    if len(memory) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(memory)) * SAMPLE_S / 60.0, memory, 1)[0])


def table(phases: Sequence[Phase], engines: str) -> Table:
    """Return the streams of each part."""
    shown = Table(title=f"Promised streams and a hostile neighbour ({engines})")
    columns = ("streams", "complete", "promised", "kept", "restarts", "workers lost", "RSS, MiB", "slope, MiB/min")
    for title in ("", *columns):
        shown.add_column(title, justify="right" if title else "left")
    for phase in phases:
        first, last = (phase.rss_mib[0], phase.rss_mib[-1]) if phase.rss_mib else (0.0, 0.0)
        values: tuple[Any, ...] = (
            *(phase.streams, phase.complete, phase.guaranteed, f"{100 * phase.kept_share:.1f} %", phase.restarts),
            *(phase.workers_lost, f"{first:.0f} to {last:.0f}", f"{phase.rss_slope_mib_per_min:.1f}"),
        )
        shown.add_row(phase.name, *map(str, values))
    return shown


def table_of_attacks(phase: Phase) -> Table:
    """Return how each attack was answered."""
    shown = Table(title="Answers to the hostile client")
    shown.add_column("attack")
    shown.add_column("answers")
    for name, counts in phase.attacks.items():
        shown.add_row(name, ", ".join(f"{outcome} {count}" for outcome, count in counts.items()))
    return shown
