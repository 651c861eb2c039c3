"""A cluster of real processes whose engines write down their steps, and what its clients saw."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load.driving import drive
from benchmarks.load.exchange import Exchange
from benchmarks.load.grpc_wire import GrpcWire
from benchmarks.load.schedule import Bounds, Planned, Schedule, of_applications
from benchmarks.prompts import DEFAULT_RANGE
from benchmarks.requested_slo import RequestedSlo
from benchmarks.validity_fit import DECODE, PREFILL, Step, steps_of
from deploy.local.cluster import LocalCluster
from deploy.local.processes import RunningProcess
from services.config.load import load_settings
from services.slo.composer import Limits
from services.slo.hardware import KV_BYTES_PER_TOKEN
from slos_serve import AsyncClient, Client, RetryPolicy

log = logging.getLogger(__name__)

LONE_PROMPTS = (64, 1400, 200, 900, 400, 128, 600, 1100, 300, 64, 800, 1600)
LONE_EVERY_S, LONE_OUTPUT = 2.2, 16
LEARN_SEED = 77
PARTS = ("lone requests", "load to learn from", "compared")
PATIENCE_S = 60.0

REAL = """
[engine.vllm]
log_level = "ERROR"
"""
EMULATED = """
[engine]
kind = "emulated"
[engine.emulated]
# As slow as SmolLM2 on a core, so that what a busy machine adds counts for little.
time_scale = 5
step_time_noise = 0.03
record_steps_in = "{run_dir}"
"""
CONFIG = """
[launcher]
run_dir = "{run_dir}"
[router]
port = 0
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


@dataclass(frozen=True, slots=True)
class Measured:
    """What the real cluster did."""

    lone: tuple[Exchange, ...]
    loaded: tuple[Exchange, ...]
    compared: tuple[Exchange, ...]
    began_s: float
    """When the compared workload began."""
    steps: Mapping[str, Sequence[Step]]
    kv_tokens: int
    limits: Limits
    kv_bytes_per_token: int = KV_BYTES_PER_TOKEN["SmolLM2-135M"]
    others_cores: float = 0.0
    """Used by processes that are no part of this, while the compared workload ran."""


class Recording(LocalCluster):
    """A cluster whose engines write down their steps."""

    def start_worker(self, role: str, index: int, extra: Mapping[str, str] | None = None) -> RunningProcess:
        recording = {"SLOS_SERVE_ENGINE__VLLM__RECORD_STEPS": str(self.recording(f"{role}-{index}"))}
        return super().start_worker(role, index, {**(extra or {}), **recording})

    def recording(self, worker_id: str) -> Path:
        return self.settings.launcher.run_dir.resolve() / f"{worker_id}.jsonl"


def measure(
    directory: Path,
    rate_rps: float,
    requests: int,
    learn_s: float,
    seed: int,
    say: Callable[[str], None],
    *,
    emulated: bool = False,
) -> Measured:
    config, run_dir = directory / "cluster.toml", directory / "run"
    run_dir.mkdir()
    config.write_text((CONFIG + (EMULATED if emulated else REAL)).format(run_dir=run_dir))
    cluster = Recording(load_settings(config), config, die_with_parent=True, report=log.info)
    running = cluster.start()
    try:
        with Client(running.router_address) as client:
            state = client.cluster_state()
        engine = cluster.settings.engine.emulated if emulated else cluster.settings.engine.vllm
        blocks = next(worker.kv_blocks_total for worker in state.workers if worker.worker_id == DECODE)
        schedules = [
            _lone(),
            _learning(rate_rps, learn_s),
            _without_refusals(of_applications(rate_rps, 1.0, Bounds(requests=requests), seed)),
        ]
        runs = asyncio.run(_drive(running.router_address, schedules, say))
    finally:
        cluster.stop()
    (lone, _, _), (loaded, _, _), (compared, began_s, others_cores) = runs
    return Measured(
        lone=lone,
        loaded=loaded,
        compared=compared,
        began_s=began_s,
        steps={worker: steps_of(cluster.recording(worker)) for worker in (PREFILL, DECODE)},
        kv_tokens=blocks * engine.block_tokens,
        limits=Limits(engine.max_step_tokens, engine.max_running_requests, engine.block_tokens),
        kv_bytes_per_token=(
            cluster.settings.engine.emulated.kv_bytes_per_token if emulated else KV_BYTES_PER_TOKEN["SmolLM2-135M"]
        ),
        others_cores=others_cores,
    )


async def _drive(
    address: str, schedules: Sequence[Schedule], say: Callable[[str], None]
) -> list[tuple[tuple[Exchange, ...], float, float]]:
    runs = []
    for number, (what, schedule) in enumerate(zip(PARTS, schedules, strict=True)):
        say(f"{what}: {len(schedule.planned)} requests")
        wire = GrpcWire(AsyncClient(address, retry=RetryPolicy(max_attempts=1)), "", DEFAULT_RANGE, seed=number)
        before_s, ours_before_s, began_s = _busy_s(), _ours_s(), time.monotonic()
        try:
            done = await drive(wire, schedule, patience_s=PATIENCE_S, stop=asyncio.Event())
        finally:
            await wire.close()
        others_s = (_busy_s() - before_s) - (_ours_s() - ours_before_s)
        runs.append((done.exchanges, done.began_s, max(0.0, others_s / (time.monotonic() - began_s))))
    return runs


def _busy_s() -> float:
    """Return the busy seconds of all cores since the machine started."""
    times = psutil.cpu_times()
    return times.user + times.system


def _ours_s() -> float:
    """Return the CPU seconds of this process and all that it started."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))


def _lone() -> Schedule:
    planned = [
        Planned(number, number * LONE_EVERY_S, RequestedSlo(), tokens, LONE_OUTPUT)
        for number, tokens in enumerate(LONE_PROMPTS)
    ]
    return Schedule(tuple(planned), len(planned) * LONE_EVERY_S)


def _learning(rate_rps: float, seconds: float) -> Schedule:
    return _without_refusals(of_applications(rate_rps, 1.0, Bounds(seconds=seconds), LEARN_SEED))


def _without_refusals(schedule: Schedule) -> Schedule:
    """Everybody is served: two runs can only be compared if the same requests are in them."""
    planned = tuple(
        Planned(p.number, p.at_s, RequestedSlo(p.slo.profile), p.prompt_tokens, p.output_tokens)
        for p in schedule.planned
    )
    return Schedule(planned, schedule.seconds)
