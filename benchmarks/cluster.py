"""A whole real cluster against stock vLLM on the same two cores: contracts kept as the load rises.

Variants, one after the other, all given the same requests with the same contracts at the same times:

- `stock`: two engines with vLLM's own scheduler and default chunk, one on each core, behind round robin;
- `stock-N`: the same with chunks of N tokens;
- `composed`: two engines that compose their steps from promises, behind the same round robin;
- `apart`: a router, one prefill and one decode worker;
- `local-prefill`: the same with `router.local_prefill = true`;
- `co-located`: a router and two decode workers that compute all prompts themselves.

Engines behind round robin are driven from this process, without a router, gRPC or Redis on their cores. Everything is
measured where the client is; a request that is not done within the patience after the last arrival counts as missed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.cluster_clients import PATIENCE_S, Client, broken, follow
from benchmarks.cluster_tables import details
from benchmarks.engine_driver import driven
from benchmarks.engine_load import Offered, greedy, random_tokens
from benchmarks.engine_parts import record
from benchmarks.engine_tables import goodput
from benchmarks.machine import machine, real_engine, write_records
from benchmarks.workload import MIXED, endless
from deploy.local.cluster import LocalCluster
from services.config.load import load_settings
from services.engine.vllm.config import VllmEngineConfig
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceModel
from services.terminal.console import make_console
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

log = logging.getLogger(__name__)

CLUSTERS = {"apart": (1, 1, False), "local-prefill": (1, 1, True), "co-located": (0, 2, True)}
"""Numbers of prefill and decode workers of each variant, and whether the latter compute prompts."""
VARIANTS = ("stock", "stock-256", "apart", "local-prefill", "co-located")
QUICK_VARIANTS = ("stock", "co-located")
CORES = 2
SLOWDOWNS = {"chatbot": 5.0, "coder": 5.0, "summarizer": 3.0}
TPOTS_S = {"chatbot": 0.5, "coder": 0.3, "summarizer": 0.5}
"""TPOT targets for SmolLM2 on one core, whose decode steps take 40 ms and whose hand-overs to a busy worker take three
of them or more."""
DEFAULT_CHUNK = 2048
KV_BYTES = 1200 * 2**20
WARM_UP_LOAD, WARM_UP_REQUESTS = 0.5, 12
SHARED_STEP = 4
"""Streams that a token's step is taken to be shared by where a load is defined."""

CONFIG = """
[launcher]
run_dir = "{run_dir}"
prefill = {prefill}
decode = {decode}
[router]
port = 0
local_prefill = {local_prefill}
[engine.vllm]
kv_cache_bytes = {kv_bytes}
log_level = "ERROR"
"""

console = make_console()


@dataclass(frozen=True, slots=True)
class SweepSize:
    """Loads, and how many requests are offered at each."""

    loads: tuple[float, ...]
    requests: int


FULL = SweepSize((0.4, 0.6, 0.8, 1.0), 40)
QUICK = SweepSize((0.5, 0.8), 16)


def run(
    json_path: Path | None,
    quick: bool,
    variants: Sequence[str],
    loads: Sequence[float] = (),
    requests: int | None = None,
) -> None:
    """
    Args:
        variants: as above; those behind round robin run first.
        loads, requests: in place of the usual ones.
    """
    lengths = QUICK if quick else FULL
    lengths = replace(lengths, loads=tuple(loads) or lengths.loads, requests=requests or lengths.requests)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        bench = _Bench(lengths, lambda what: progress.update(task, description=what))
        records = bench.run(variants)
    overall = [record for record in records if record["part"] == "cluster" and record["profile"] == "all"]
    console.print(details(overall))
    console.print(goodput(overall))
    for lost in (one for one in records if one["part"] == "broken"):
        console.print("Broken:", ", ".join(f"{name} {value}" for name, value in lost.items() if name != "part"))
    console.print(f"{machine()}; {real_engine()} on {CORES} cores; contracts: TTFT, TPOT")
    write_records(json_path, records)


def trace(load: float, requests: int, idle: PerformanceModel) -> list[Offered]:
    """Return the requests that every variant is offered; prompts share no beginning.

    Args:
        load: share of the time of both engines that the requests need: prompts alone, tokens in steps of four.
    """
    rng = random.Random(f"{load}")
    workload = list(islice(endless(1.0, round(1000 * load), MIXED, burstiness=1.0), requests))
    step_s = idle.decode_step_s(SHARED_STEP, SHARED_STEP * 512) / SHARED_STEP
    needed_s = sum(
        idle.prefill_s(asked.prompt_tokens, DEFAULT_CHUNK) + asked.output_tokens * step_s for asked in workload
    )
    stretch = needed_s / (load * CORES * requests)
    return [
        Offered(
            request.at_s * stretch,
            request.profile,
            random_tokens(rng, request.prompt_tokens),
            request.output_tokens,
            Contract(
                PrefillTarget(ttft_s=SLOWDOWNS[request.profile] * idle.prefill_s(request.prompt_tokens, DEFAULT_CHUNK)),
                (DecodeTarget(TPOTS_S[request.profile]),),
            ),
        )
        for request in workload
    ]


class _Bench:
    def __init__(self, lengths: SweepSize, say: Callable[[str], None]) -> None:
        self._lengths = lengths
        self._say = say
        self._records: list[dict[str, Any]] = []
        self._idle: PerformanceModel | None = None
        """Step times that the first engine announces; slowdowns become seconds by it, for all variants the same.
        Without an engine of this process it is that of the profile."""

    def run(self, variants: Sequence[str]) -> list[dict[str, Any]]:
        # vLLM is started from this process before there is any gRPC in it.
        for variant in sorted(variants, key=lambda variant: variant in CLUSTERS):
            self._say(f"{variant}: starting")
            if variant in CLUSTERS:
                self._cluster(variant)
            else:
                asyncio.run(self._round_robin(variant))
        return self._records

    async def _round_robin(self, variant: str) -> None:
        scheduling, _, chunk = variant.partition("-")
        async with AsyncExitStack() as stack:
            drivers = [
                await stack.enter_async_context(driven(_engine_config(core, scheduling, int(chunk or DEFAULT_CHUNK))))
                for core in sorted(os.sched_getaffinity(0))[-CORES:]
            ]
            self._idle = self._idle or PerformanceModel(drivers[0].facts.performance)
            for load, offered in self._loads():
                self._say(f"{variant}: a load of {load:g}")
                began_s = time.monotonic()
                done = []
                for number, request in enumerate(offered):
                    await asyncio.sleep(max(0.0, began_s + request.at_s - time.monotonic()))
                    driver = drivers[number % len(drivers)]
                    sampling = greedy(request.max_tokens)
                    done.append(await driver.submit(request.profile, request.token_ids, sampling, request.contract))
                ending = asyncio.gather(*(tracked.ended.wait() for tracked in done))
                try:
                    await asyncio.wait_for(asyncio.shield(ending), PATIENCE_S)
                except TimeoutError:
                    for driver in drivers:
                        await driver.abandon()
                await ending
                self._note(variant, load, offered, [Client(tracked) for tracked in done])

    def _cluster(self, variant: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory) / "cluster.toml"
            prefill, decode, local_prefill = CLUSTERS[variant]
            config.write_text(
                CONFIG.format(
                    run_dir=Path(directory) / "run",
                    prefill=prefill,
                    decode=decode,
                    local_prefill=str(local_prefill).lower(),
                    kv_bytes=KV_BYTES,
                )
            )
            launcher = LocalCluster(load_settings(config), config, die_with_parent=True, report=log.info)
            running = launcher.start()
            try:
                asyncio.run(self._offer(variant, running.router_address))
            finally:
                launcher.stop()

    async def _offer(self, variant: str, address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            for load, offered in self._loads():
                self._say(f"{variant}: a load of {load:g}")
                began_s = time.monotonic()
                clients = await asyncio.gather(*(follow(stub, request, began_s, offered[-1]) for request in offered))
                self._note(variant, load, offered, clients)
            state = (await stub.GetClusterState(inference_pb2.GetClusterStateRequest(), timeout=10)).state
            self._records += [
                {
                    "part": "engine",
                    "variant": variant,
                    "worker": worker.worker_id,
                    "steps": worker.steps,
                    "prediction_error": worker.scheduling.prediction_error,
                    "bound_coverage": worker.scheduling.bound_coverage,
                    "compose_s": worker.scheduling.compose_s,
                }
                for worker in state.workers
            ]

    def _loads(self) -> list[tuple[float, list[Offered]]]:
        """Each load and its requests; the first one, nan, warms up."""
        idle = self._idle = self._idle or PerformanceModel(SMOLLM2_135M_ONE_CORE)
        warm_up = (math.nan, trace(WARM_UP_LOAD, WARM_UP_REQUESTS, idle))
        return [warm_up, *((load, trace(load, self._lengths.requests, idle)) for load in self._lengths.loads)]

    def _note(self, variant: str, load: float, offered: Sequence[Offered], clients: Sequence[Client]) -> None:
        if math.isnan(load):
            return
        seconds = offered[-1].at_s
        profiles = {client.tracked.profile for client in clients}
        kinds = {profile: [c for c in clients if c.tracked.profile == profile] for profile in sorted(profiles)}
        for profile, some in {**kinds, "all": clients}.items():
            guaranteed = [client for client in some if client.guaranteed]
            self._records.append(
                {
                    "part": "cluster",
                    "load": load,
                    **record(variant, len(offered) / seconds, profile, [client.tracked for client in some], seconds),
                    "guaranteed": len(guaranteed) if variant in CLUSTERS else None,
                    "guarantees_kept": sum(client.tracked.kept for client in guaranteed),
                    "prefilled_locally": sum(client.local for client in some),
                    "reasons": Counter(c.admission.reason for c in some if c.admission and c.admission.reason),
                }
            )
        self._records += [
            {"part": "broken", "load": load, "variant": variant, **broken(client)}
            for client in clients
            if client.guaranteed and not client.tracked.kept
        ]


def _engine_config(core: int, scheduling: str, chunk: int) -> VllmEngineConfig:
    return VllmEngineConfig.model_validate(
        {
            "cpu_cores": (core,),
            "scheduling": "stock" if scheduling == "stock" else "slo",
            "max_step_tokens": chunk,
            "kv_cache_bytes": KV_BYTES,
            "log_level": "ERROR",
        }
    )
