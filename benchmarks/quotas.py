"""What quotas cost a request: at Redis, and until the first token of an emulated cluster.

Requests of a tenant with every quota and of one without any are sent in turn, so that both meet the same machine.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
from rich.table import Table

from benchmarks.machine import machine, write_records
from deploy.local.cluster import LocalCluster, running_cluster
from deploy.local.ports import free_port
from deploy.local.redis_server import redis_command
from services.config.load import load_settings
from services.config.tenants import TenantSettings
from services.slo.quotas import Quota, Use
from services.slo.quotas.decision import COUNTS
from services.state.connection import StateConnection, StateUnavailableError
from services.state.quotas import Account, SharedQuotas
from services.state.unique_keys import UniqueKeys
from services.terminal.console import make_console
from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2

CALLS, TOGETHER, GATHERED = 1000, 32, 60
WARM_UP = 20
PROMPT_TOKENS, OUTPUT_TOKENS = 3, 2
EVERY_QUOTA = TenantSettings(
    requests_per_s=1e6,
    prompt_tokens_per_s=1e6,
    output_tokens_per_s=1e6,
    concurrent_requests=100_000,
    queue_places=100_000,
)
"""Quotas that are never used up."""
USE = Use({Quota.REQUESTS: 1.0, Quota.PROMPT_TOKENS: 30.0, Quota.OUTPUT_TOKENS: 100.0}, COUNTS)

console = make_console()


def run(json_path: Path | None, requests: int) -> None:
    """Measure, print, and write JSON if told where."""
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        command = redis_command(port, Path(directory))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as redis:
            try:
                records = asyncio.run(_at_redis(f"redis://127.0.0.1:{port}/0"))
            finally:
                redis.kill()
    with tempfile.TemporaryDirectory() as directory:
        records += _in_a_cluster(Path(directory), requests)
    table = Table(title="What quotas cost")
    for title in ("what", "p50, ms", "p99, ms", "CPU of the router, us"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for record in records:
        figures = (record["p50_ms"], record["p99_ms"])
        cpu_us = record.get("cpu_us")
        shown = "" if cpu_us is None else f"{cpu_us:.0f}"
        table.add_row(record["what"], *(f"{figure:.2f}" for figure in figures), shown)
    console.print(table)
    console.print(machine())
    write_records(json_path, records)


async def _at_redis(url: str) -> list[dict[str, Any]]:
    connection = StateConnection(url, 30.0, logs_changes=False)
    await _answers(connection)
    shared = SharedQuotas(connection, "bench", "router")
    account = Account("metered", EVERY_QUOTA.quotas)
    ids, taken = UniqueKeys(connection, 60_000), iter(range(10 * CALLS))
    records = [
        await _record("a ping", connection.ping),
        await _record("an id reserved", lambda: ids.take(f"bench:{next(taken)}", "")),
        await _record("a charge", lambda: shared.charge(account, USE)),
        await _together("one of 32 charges together", lambda: shared.charge(account, USE)),
    ]
    await connection.close()
    return records


async def _answers(connection: StateConnection) -> None:
    for _ in range(600):
        try:
            await connection.ping()
        except StateUnavailableError:
            await asyncio.sleep(0.1)
        else:
            return


async def _record(what: str, call: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    times_s = []
    cpu_s = 0.0
    for _ in range(CALLS):
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        await call()
        times_s.append(time.perf_counter() - began_s)
        cpu_s += time.process_time() - cpu_began_s
        # Round trips are spaced; what is measured is one that finds nobody before it.
        await asyncio.sleep(0.006)
    return {"what": what, **_quantiles(times_s), "cpu_us": cpu_s / CALLS * 1e6}


async def _together(what: str, call: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    times_s = []
    cpu_began_s = time.process_time()
    for _ in range(GATHERED):
        began_s = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(TOGETHER)))
        times_s.append(time.perf_counter() - began_s)
    cpu_s = time.process_time() - cpu_began_s
    return {"what": what, **_quantiles(times_s), "cpu_us": cpu_s / GATHERED / TOGETHER * 1e6}


def _in_a_cluster(directory: Path, requests: int) -> list[dict[str, Any]]:
    config = directory / "cluster.toml"
    quotas = EVERY_QUOTA.model_dump(exclude_unset=True)
    lines = "\n".join(f"{name} = {value}" for name, value in quotas.items())
    config.write_text(
        f'[router]\nport = 0\n[launcher]\nrun_dir = "{directory}"\n[engine]\nkind = "emulated"\n'
        f"[tenants.metered]\n{lines}\n"
    )
    cluster = LocalCluster(load_settings(config), config, die_with_parent=True, report=console.print)
    with running_cluster(cluster) as running, grpc.insecure_channel(running.router_address) as channel:
        router = next(entry.process() for entry in running.processes if entry.name == "router")
        assert router is not None
        stub = inference_pb2_grpc.InferenceStub(channel)
        times_s: dict[str, list[float]] = {"free": [], "metered": []}
        cpu_s = dict.fromkeys(times_s, 0.0)
        for number in range(WARM_UP + requests):
            for tenant in ("free", "metered") if number % 2 else ("metered", "free"):
                before_s = _cpu_s(router)
                took_s = _first_token_s(stub, tenant)
                if number >= WARM_UP:
                    times_s[tenant].append(took_s)
                    cpu_s[tenant] += _cpu_s(router) - before_s
        return [
            {"what": f"first token, {name}", **_quantiles(times_s[tenant]), "cpu_us": cpu_s[tenant] / requests * 1e6}
            for tenant, name in (("free", "without quotas"), ("metered", "with every quota"))
        ]


def _first_token_s(stub: inference_pb2_grpc.InferenceStub, tenant: str) -> float:
    request = inference_pb2.GenerateRequest(
        tenant=tenant, sampling=sampling_pb2.SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    )
    request.token_ids.ids.extend(range(20, 20 + PROMPT_TOKENS))
    first_s = None
    began_s = time.perf_counter()
    for response in stub.Generate(request, timeout=60):
        if first_s is None and response.HasField("tokens"):
            first_s = time.perf_counter() - began_s
    assert first_s is not None
    return first_s


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _quantiles(times_s: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times_s, n=100, method="inclusive")
    return {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}
