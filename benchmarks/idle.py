"""What an idle cluster costs: CPU and memory of each process.

Real vLLM, one prefill and one decode worker, after one request; nothing may spin.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
from rich.table import Table

from benchmarks.machine import machine, write_records
from deploy.local.cluster import LocalCluster, running_cluster
from services.config.load import load_settings
from services.terminal.console import make_console
from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2

SETTLE_S = 5.0

console = make_console()


def run(json_path: Path | None, seconds: float) -> None:
    records = measure(seconds)
    table = Table(title=f"An idle cluster over {seconds:.0f} s")
    for title in ("process", "CPU, % of a core", "memory (PSS), MiB"):
        table.add_column(title, justify="left" if title == "process" else "right")
    for record in records:
        table.add_row(record["process"], f"{record['cpu_percent']:.2f}", f"{record['pss_mib']:.0f}")
    console.print(table)
    console.print(machine())
    write_records(json_path, records)


def measure(seconds: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        settings = load_settings(None, {"router": {"port": 0}, "launcher": {"run_dir": directory}})
        cluster = LocalCluster(settings, None, die_with_parent=True, report=console.print)
        with running_cluster(cluster) as running:
            _one_request(running.router_address)
            time.sleep(SETTLE_S)
            processes = _named(running.processes)
            before = {name: _cpu_s(process) for name, process in processes.items()}
            began_s = time.monotonic()
            time.sleep(seconds)
            elapsed_s = time.monotonic() - began_s
            return [
                {
                    "process": name,
                    "cpu_percent": 100 * (_cpu_s(process) - before[name]) / elapsed_s,
                    "pss_mib": process.memory_full_info().pss / 2**20,
                }
                for name, process in processes.items()
            ]


def _named(running: Any) -> dict[str, psutil.Process]:
    named = {}
    for entry in running:
        process = entry.process()
        named[entry.name] = process
        for index, child in enumerate(process.children(recursive=True)):
            named[f"{entry.name} / {child.name()} {index}"] = child
    return named


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _one_request(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        request = inference_pb2.GenerateRequest(
            text="The quick brown fox", sampling=sampling_pb2.SamplingParams(max_tokens=8)
        )
        list(inference_pb2_grpc.InferenceStub(channel).Generate(request))
