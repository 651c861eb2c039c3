"""Two clusters in this process: one whose clients and routers are hostile, and one whose workers are."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource

import router.app
from decode_worker.policy import DecodePolicy
from gateway.app import build_app
from prefill_worker.policy import PrefillPolicy
from services.config.settings import Settings
from services.model.directory import locate_model
from services.state.connection import StateConnection
from services.state.registry import WorkerRegistry, WorkerRole
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces
from services.worker.engine_factory import create_engine
from services.worker.policy import RolePolicy
from services.worker.process import WorkerProcess
from slos_serve.v1 import worker_pb2
from tests.fuzz import doors
from tests.fuzz.doors import Door
from tests.fuzz.puppets import Puppet, running_puppet
from tests.fuzz.watch import FaultError
from tests.support.eventually import eventually
from tests.support.redis_server import RedisServer
from tests.support.tiny_model import write_tiny_model

INFERENCE = "/slos_serve.v1.Inference"
WORKER = "/slos_serve.v1.Worker"
SERVED, STAGED = "served", "staged"
"""Prefixes in Redis of the cluster whose workers are real, and of the one whose workers are puppets."""
PUPPETS = 6
READY_S = 300.0
"""Seconds that both clusters may take to be ready; the planner may have to be compiled."""


@dataclass(slots=True)
class Stage:
    """Everything that inputs are sent to."""

    router: Door
    workers: dict[str, Door]
    staged_router: Door
    puppets: list[Puppet]
    model_dir: Path
    gateway: Any
    """ASGI application in front of `router`."""
    state: StateConnection
    registry: WorkerRegistry
    """Registry of the staged cluster, through a connection of the fuzzer's own."""
    tasks: list[asyncio.Task[Any]]
    """What must not end while the clusters run."""

    def check(self) -> None:
        """Check that every router and worker still runs.

        Raises:
            FaultError: one has ended.
        """
        for task in self.tasks:
            if task.done():
                ended = "cancelled" if task.cancelled() else repr(task.exception() or task.result())
                raise FaultError(f"{task.get_name()} has ended: {ended}")


@contextlib.asynccontextmanager
async def running_stage(directory: Path) -> AsyncIterator[Stage]:
    """Start Redis, two routers, three workers, puppets and a gateway; stop them all at the end."""
    redis = RedisServer(directory)
    redis.start()
    model = write_tiny_model(directory / "tiny")
    served, staged = (_settings(model, redis.url, prefix) for prefix in (SERVED, STAGED))
    tasks: list[asyncio.Task[Any]] = []
    state = StateConnection(redis.url, 10.0)
    registry = WorkerRegistry(state, STAGED, ttl_s=3600.0)
    try:
        with doors.recorded_servers() as made:
            routers = []
            for settings in (served, staged):
                before = len(made)
                tasks.append(asyncio.create_task(router.app.serve(settings), name=f"router of {settings.redis.prefix}"))
                await _until(lambda before=before: len(made) > before and made[before].address, tasks)
                routers.append(made[before])
            workers = {}
            for worker_id, policy in _policies().items():
                before = len(made)
                tasks.append(asyncio.create_task(_work(served, worker_id, policy), name=f"worker {worker_id}"))
                await _until(lambda before=before: len(made) > before and made[before].address, tasks)
                workers[worker_id] = made[before]
        async with contextlib.AsyncExitStack() as stack:
            roles = (WorkerRole.PREFILL, WorkerRole.DECODE)
            puppets = [
                await stack.enter_async_context(running_puppet(registry, f"puppet-{index}", roles[index % 2]))
                for index in range(PUPPETS)
            ]
            for number in (signal.SIGTERM, signal.SIGINT):
                # The routers took them for themselves, and only one of them would end.
                asyncio.get_running_loop().remove_signal_handler(number)
            meters = Meters(NoOpMeterProvider())
            app = build_app(
                served.gateway,
                (routers[0].address,),
                locate_model(served.model, weights=False),
                meters,
                Traces(Resource.get_empty(), 0.0, None),
            )
            yield Stage(routers[0], workers, routers[1], puppets, model, app, state, registry, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await state.close()
        redis.stop()


async def _until(condition: Any, tasks: list[asyncio.Task[Any]]) -> None:
    async with asyncio.timeout(READY_S):
        while not condition():
            for task in tasks:
                if task.done():
                    raise RuntimeError(f"{task.get_name()} did not start: {task.exception() or task.result()}")
            await asyncio.sleep(0.02)


def _settings(model: Path, redis_url: str, prefix: str) -> Settings:
    return Settings.model_validate(
        {
            "model": {"path": str(model)},
            "redis": {
                "url": redis_url,
                "prefix": prefix,
                # The staged router soon asks again for a worker that it has let go.
                "heartbeat_s": 0.2 if prefix == SERVED else 0.05,
                "heartbeat_ttl_s": 20.0,
                "journal_ttl_s": 20.0,
            },
            "router": {"port": 0, "id": f"router-{prefix}", "no_worker_patience_s": 1.0, "default_max_tokens": 8},
            "console": {"enabled": False},
            "telemetry": {"metrics": False},
            "engine": {
                "kind": "emulated",
                "emulated": {"overhead_s": 0.004, "per_token_s": 1e-6, "kv_lease_s": 5, "kv_blocks": 4096},
            },
        }
    )


def _policies() -> dict[str, RolePolicy]:
    return {"prefill-0": PrefillPolicy(), "decode-0": DecodePolicy(), "decode-1": DecodePolicy()}


async def _work(settings: Settings, worker_id: str, policy: RolePolicy) -> int:
    engine = create_engine(settings, worker_id, "127.0.0.1")
    process = WorkerProcess(worker_id, settings.decode_worker, settings.redis, policy, engine, settings.telemetry)
    # A worker that drains takes nothing any more: what is asked for is checked and answered, and then not done.
    process.request_drain = lambda grace_s=None: None  # type: ignore[method-assign]
    return await process.run()


async def desk_address(stage: Stage) -> str:
    """Return where the prefill worker's lease desk listens, as a KV handle of it says."""
    found: list[str] = []

    def take(answer: worker_pb2.SessionResponse, _count: int) -> bool:
        found.extend(output.kv.transfer_params_json for output in answer.step.outputs if output.HasField("kv"))
        return bool(found)

    hello = worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id="desk-finder"))
    submit = worker_pb2.Submit(request_id="desk", token_ids=[20, 21, 22], export_kv=True)
    submit.sampling.max_tokens = 4
    frames = [frame.SerializeToString() for frame in (hello, worker_pb2.SessionRequest(submit=submit))]

    async def ask() -> bool:
        await doors.call(stage.workers["prefill-0"], f"{WORKER}/Session", frames, enough=take, idle_s=2.0)
        return bool(found)

    await eventually(ask)
    return found[0]
