"""The processes of one measurement: Redis, stub workers, a router or what stands in for it, and the load generator."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.router_cost.load import Spec
from deploy.local import processes
from deploy.local.ports import free_port
from deploy.local.processes import RunningProcess
from deploy.local.redis_server import redis_command
from services.config.settings import Settings
from services.model.directory import locate_model
from services.network.address import LOOPBACK
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

START_S = 120.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Pools:
    """The stub workers and how long their steps last."""

    prefill: int = 2
    decode: int = 16
    prefill_step_s: float = 0.005
    step_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the load generator, with the CPU time that each part used within its window. Seconds."""

    wall_s: float
    cpu_s: Mapping[str, float]
    result: Mapping[str, Any]


@dataclass(slots=True)
class Stage:
    """Where measurements take place; `running` starts and stops it."""

    directory: Path
    clockwork: Path
    pools: Pools
    router_processes: int
    redis_url: str = ""
    prefix: str = ""
    workers: tuple[str, ...] = ()
    """Addresses, prefill workers first."""
    router: str = ""
    parts: dict[str, RunningProcess] = field(default_factory=dict)

    def measure(self, spec: Spec, parts: Sequence[str]) -> Sample:
        """Run the load generator; CPU time is that of these parts and their children."""
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.router_cost.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as generator:
            assert generator.stdin is not None
            assert generator.stdout is not None
            generator.stdin.write(json.dumps(asdict(spec)))
            generator.stdin.close()
            marks = []
            for mark in ("begin", "end"):
                if (line := generator.stdout.readline().strip()) != mark:
                    raise RuntimeError(f"the load generator ended early: {line}")
                marks.append((time.monotonic(), {part: self._cpu_s(part) for part in parts}))
            result = json.loads(generator.stdout.read())
        (began_s, before), (ended_s, after) = marks
        return Sample(ended_s - began_s, {part: after[part] - before[part] for part in parts}, result)

    def _cpu_s(self, part: str) -> float:
        process = self.parts[part].process()
        if process is None:
            raise RuntimeError(f"{part} has ended; its log says:\n{self.parts[part].log_tail()}")
        family = [process, *process.children(recursive=True)]
        return sum(times.user + times.system for times in (member.cpu_times() for member in family))

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        log = self.directory / f"{name}.log"
        self.parts[name] = processes.start(name, command, log, environment or {}, die_with_parent=True)


@contextmanager
def running(directory: Path, clockwork: Path, pools: Pools, settings: Settings, routers: int = 1) -> Iterator[Stage]:
    """Redis, stub workers and a router that is connected to all of them."""
    model = locate_model(settings.model, weights=False)
    stage = Stage(directory, clockwork, pools, routers, prefix=f"bench{time.time_ns()}")
    port = free_port()
    stage.redis_url = f"redis://{LOOPBACK}:{port}/0"
    try:
        stage.start("redis", redis_command(port, directory))
        steps = (str(pools.prefill_step_s), str(pools.step_s))
        counts = (str(pools.prefill), str(pools.decode))
        module = "benchmarks.router_cost.stub_workers"
        command = [sys.executable, "-m", module, stage.redis_url, stage.prefix, model.name, str(clockwork)]
        stage.start("workers", [*command, *counts, *steps])
        router_port = free_port()
        stage.router = f"{LOOPBACK}:{router_port}"
        environment = {
            "SLOS_SERVE_REDIS__URL": stage.redis_url,
            "SLOS_SERVE_REDIS__PREFIX": stage.prefix,
            "SLOS_SERVE_MODEL__PATH": str(model.path),
            "SLOS_SERVE_MODEL__NAME": model.name,
            "SLOS_SERVE_ROUTER__PORT": str(router_port),
            "SLOS_SERVE_ROUTER__MAX_QUEUED_REQUESTS": "4096",
            "SLOS_SERVE_ROUTER__PROCESSES": str(routers),
        }
        stage.start("router", [sys.executable, "-m", "cli", "router"], environment)
        _wait_ready(stage, pools.prefill + pools.decode)
        yield stage
    finally:
        for name in ("router", "workers", "redis"):
            if name in stage.parts:
                processes.stop([stage.parts[name]], 5.0, print)


@contextmanager
def floor(stage: Stage, *options: str) -> Iterator[str]:
    """The address of an empty grpc.aio server in the router's place; part `floor` of the stage."""
    module = "benchmarks.router_cost.floor"
    pools = stage.pools
    command = [sys.executable, "-m", module, str(stage.clockwork), str(pools.decode), str(pools.step_s), *options]
    stage.start("floor", command)
    log = stage.directory / "floor.log"
    try:
        deadline_s = time.monotonic() + START_S
        while not (port := log.read_text().strip()):
            if time.monotonic() > deadline_s:
                raise RuntimeError("the floor server did not start")
            time.sleep(POLL_S)
        yield f"{LOOPBACK}:{port}"
    finally:
        processes.stop([stage.parts.pop("floor")], 5.0, print)


def _wait_ready(stage: Stage, workers: int) -> None:
    deadline_s = time.monotonic() + START_S
    with grpc.insecure_channel(stage.router) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        while True:
            try:
                state = stub.GetClusterState(inference_pb2.GetClusterStateRequest(), timeout=2.0).state
                ready = [worker for worker in state.workers if worker.health == inference_pb2.WORKER_HEALTH_READY]
                if len(ready) == workers:
                    in_order = sorted(ready, key=lambda worker: (worker.role, int(worker.worker_id.rpartition("-")[2])))
                    stage.workers = tuple(worker.address for worker in in_order)
                    return
            except grpc.RpcError:
                pass
            for name, part in stage.parts.items():
                if part.process() is None:
                    raise RuntimeError(f"{name} has ended; its log says:\n{part.log_tail()}")
            if time.monotonic() > deadline_s:
                raise RuntimeError("the router was not ready in time")
            time.sleep(POLL_S)
