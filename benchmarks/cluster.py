"""A whole real cluster against stock vLLM on the same two cores: contracts kept as the rate rises.

Variants, one after the other, all given the same requests with the same contracts at the same times:

- `stock`: two engines with vLLM's own scheduler and default chunk, one on each core, behind round robin;
- `stock-N`: the same with chunks of N tokens;
- `composed`: two engines that compose their steps from promises, behind the same round robin;
- `cluster`: a router, one prefill and one decode worker;
- `elastic`: the same with `router.local_prefill = true`.

Engines behind round robin are driven from this process, without a router, gRPC or Redis on their cores. Everything is
measured where the client is; a request that is not done within the patience after the last arrival counts as missed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.cluster_tables import details
from benchmarks.engine_driver import Tracked, driven
from benchmarks.engine_load import Offered, greedy, random_tokens
from benchmarks.engine_parts import record
from benchmarks.engine_tables import goodput
from benchmarks.machine import machine, write_records
from benchmarks.workload import MIXED, mixed
from cli.console import make_console
from deploy.local.cluster import LocalCluster
from services.config.load import load_settings
from services.engine.vllm.config import VllmEngineConfig
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceModel
from slos_serve.v1 import contract_pb2, inference_pb2, inference_pb2_grpc, sampling_pb2

log = logging.getLogger(__name__)

VARIANTS = ("stock", "cluster", "elastic")
QUICK_VARIANTS = ("stock", "cluster")
CORES = 2
SLOWDOWNS = {"chatbot": 5.0, "coder": 5.0, "summarizer": 3.0}
TPOTS_S = {"chatbot": 0.5, "coder": 0.3, "summarizer": 0.5}
"""Of SmolLM2 on one core, whose decode steps take 40 ms and whose hand-overs to a busy worker three of them or more."""
DEFAULT_CHUNK = 2048
KV_BYTES = 1200 * 2**20
PATIENCE_S = 6.0
WARM_UP_RPS, WARM_UP_S = 1.0, 8.0

CONFIG = """
[launcher]
run_dir = "{run_dir}"
[router]
port = 0
local_prefill = {elastic}
[engine.vllm]
kv_cache_bytes = {kv_bytes}
log_level = "ERROR"
"""

console = make_console()


@dataclass(frozen=True, slots=True)
class Lengths:
    """Rates in requests a second, and for how many seconds each is offered."""

    rates: tuple[float, ...]
    seconds: float


FULL = Lengths((1.5, 2.0, 2.5), 18.0)
QUICK = Lengths((1.0, 1.8), 10.0)


@dataclass(slots=True)
class Client:
    """One request and what its client was told."""

    tracked: Tracked
    guaranteed: bool = False
    reason: str = ""
    """Why there is no guarantee."""
    local: bool = False
    """Meant to prefill where it decodes."""


def run(json_path: Path | None, quick: bool, variants: Sequence[str], rates: Sequence[float]) -> None:
    """
    Args:
        variants: as above; those behind round robin run first.
        rates: in place of the usual ones, if any.
    """
    lengths = QUICK if quick else FULL
    if rates:
        lengths = replace(lengths, rates=tuple(rates))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        bench = _Bench(lengths, lambda what: progress.update(task, description=what))
        records = bench.run(variants)
    overall = [record for record in records if record["part"] == "cluster" and record["profile"] == "all"]
    console.print(details(overall))
    console.print(goodput(overall))
    console.print(f"{machine()}; SmolLM2-135M, bfloat16, eager vLLM on {CORES} cores; contracts: TTFT, TPOT")
    write_records(json_path, records)


def trace(rate: float, seconds: float, idle: PerformanceModel) -> list[Offered]:
    """The same for every variant; prompts share no beginning."""
    rng = random.Random(f"{rate}")
    workload = mixed(rate, seconds, seed=round(1000 * rate), applications=MIXED)
    return [
        Offered(
            request.at_s,
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
    def __init__(self, lengths: Lengths, say: Callable[[str], None]) -> None:
        self._lengths = lengths
        self._say = say
        self._records: list[dict[str, Any]] = []
        self._idle: PerformanceModel | None = None
        """As the first engine announces it; slowdowns become seconds by it, for all variants the same. Without an
        engine of this process it is that of the profile."""

    def run(self, variants: Sequence[str]) -> list[dict[str, Any]]:
        # vLLM is started from this process before there is any gRPC in it.
        for variant in sorted(variants, key=lambda variant: variant in ("cluster", "elastic")):
            self._say(f"{variant}: starting")
            if variant in ("cluster", "elastic"):
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
            for rate, seconds, offered in self._loads():
                self._say(f"{variant}: {rate:g} requests/s")
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
                self._note(variant, rate, seconds, [Client(tracked) for tracked in done])

    def _cluster(self, variant: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory) / "cluster.toml"
            elastic = str(variant == "elastic").lower()
            config.write_text(CONFIG.format(run_dir=Path(directory) / "run", elastic=elastic, kv_bytes=KV_BYTES))
            launcher = LocalCluster(load_settings(config), config, die_with_parent=True, report=log.info)
            running = launcher.start()
            try:
                asyncio.run(self._offer(variant, running.router_address))
            finally:
                launcher.stop()

    async def _offer(self, variant: str, address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            for rate, seconds, offered in self._loads():
                self._say(f"{variant}: {rate:g} requests/s")
                began_s = time.monotonic()
                clients = await asyncio.gather(*(_follow(stub, request, began_s, offered[-1]) for request in offered))
                self._note(variant, rate, seconds, clients)
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

    def _loads(self) -> list[tuple[float, float, list[Offered]]]:
        """Rate, seconds and requests of each load; the first one warms up."""
        idle = self._idle = self._idle or PerformanceModel(SMOLLM2_135M_ONE_CORE)
        loads = [(WARM_UP_RPS, WARM_UP_S), *((rate, self._lengths.seconds) for rate in self._lengths.rates)]
        return [(rate, seconds, trace(rate, seconds, idle)) for rate, seconds in loads]

    def _note(self, variant: str, rate: float, seconds: float, clients: Sequence[Client]) -> None:
        if seconds == WARM_UP_S:
            return
        profiles = {client.tracked.profile for client in clients}
        kinds = {profile: [c for c in clients if c.tracked.profile == profile] for profile in sorted(profiles)}
        for profile, some in {**kinds, "all": clients}.items():
            guaranteed = [client for client in some if client.guaranteed]
            self._records.append(
                {
                    "part": "cluster",
                    **record(variant, rate, profile, [client.tracked for client in some], seconds),
                    "guaranteed": len(guaranteed),
                    "guarantees_kept": sum(client.tracked.kept for client in guaranteed),
                    "prefilled_locally": sum(client.local for client in some),
                    "reasons": Counter(client.reason for client in some if client.reason),
                }
            )


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


async def _follow(
    stub: inference_pb2_grpc.InferenceAsyncStub, offered: Offered, began_s: float, last: Offered
) -> Client:
    await asyncio.sleep(max(0.0, began_s + offered.at_s - time.monotonic()))
    arrived_s = time.monotonic()
    meter = AttainmentMeter(offered.contract, arrived_s)
    client = Client(
        Tracked(offered.profile, offered.contract, len(offered.token_ids), offered.max_tokens, arrived_s, meter)
    )
    timeout_s = max(0.0, began_s + last.at_s - arrived_s) + PATIENCE_S
    try:
        async for response in stub.Generate(_message(offered), timeout=timeout_s):
            if response.HasField("admission"):
                admission = response.admission
                client.guaranteed = admission.verdict == inference_pb2.VERDICT_GUARANTEED
                client.reason = admission.reason
                client.local = admission.prefill_worker_id == admission.decode_worker_id
            elif response.HasField("tokens"):
                now_s, count = time.monotonic(), len(response.tokens.token_ids)
                meter.tokens(count, now_s)
                client.tracked.token_times_s += [now_s] * count
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
    return client


def _message(offered: Offered) -> inference_pb2.GenerateRequest:
    contract = contract_pb2.Contract(on_overload=contract_pb2.ON_OVERLOAD_BEST_EFFORT)
    assert offered.contract.prefill is not None
    contract.stages.add().prefill.ttft_s = offered.contract.prefill.ttft_s or 0.0
    contract.stages.add().decode.tpot_s = offered.contract.decode[0].tpot_s
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=offered.token_ids),
        sampling=sampling_pb2.SamplingParams(temperature=0.0, max_tokens=offered.max_tokens, ignore_eos=True),
        contract=contract,
        application=offered.profile,
    )
