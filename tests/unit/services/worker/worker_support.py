"""A worker around an engine that does what the test says, and a router that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc.aio

from services import wire
from services.config.settings import RedisSettings, WorkerSettings
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import (
    EngineDeadError,
    EngineEvent,
    EngineFacts,
    EngineLoad,
    EngineRequest,
    EngineStep,
    FinishReason,
    LeaseClosed,
    RequestOutput,
    SamplingOptions,
)
from services.rpc.channel import open_channel
from services.slo.performance import StepShape
from services.telemetry.settings import TelemetrySettings
from services.worker.process import WorkerProcess
from slos_serve.v1 import worker_pb2, worker_pb2_grpc
from tests.support.engine_facts import FACTS
from tests.support.eventually import PATIENCE_S, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.worker.policy import RolePolicy

MIB = 1024 * 1024
COMPATIBILITY = FACTS.compatibility
IDLE = EngineLoad(0, 0, 64, 0, 0)


class ScriptedEngine:
    """A test double of `Engine`: it computes nothing, remembers its orders, and says what a test tells it to.

    Aborts and releases are answered as the port demands; a test may turn that off.
    """

    def __init__(self) -> None:
        self.requests: dict[str, EngineRequest] = {}
        self.aborted: list[str] = []
        self.released: list[str] = []
        self.answers_aborts = True
        self.answers_releases = True
        self.submit_error: Exception | None = None
        self.stopped = False
        self.steps = 0
        self._events: asyncio.Queue[EngineEvent | Exception] = asyncio.Queue()

    async def start(self) -> EngineFacts:
        return FACTS

    async def submit(self, request: EngineRequest) -> None:
        if self.submit_error is not None:
            raise self.submit_error
        self.requests[request.request_id] = request

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        if self.answers_aborts and self.requests.pop(request_id, None) is not None:
            self.step(RequestOutput(request_id, (), finish_reason=FinishReason.ABORT), tokens=0)

    async def release_kv(self, lease_id: str) -> None:
        self.released.append(lease_id)
        if self.answers_releases:
            self.say(LeaseClosed(lease_id, LeaseOutcome.RELEASED))

    def load(self) -> EngineLoad:
        return IDLE

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event

    async def shutdown(self) -> None:
        self.stopped = True

    def say(self, event: EngineEvent) -> None:
        self._events.put_nowait(event)

    def die(self) -> None:
        self._events.put_nowait(EngineDeadError("killed by the test"))

    def step(self, *outputs: RequestOutput, tokens: int | None = None) -> None:
        self.steps += 1
        for output in outputs:
            if output.finish_reason is not None:
                self.requests.pop(output.request_id, None)
        decoded = len(outputs) if tokens is None else tokens
        shape = StepShape(decode_requests=decoded, decode_tokens=decoded)
        load = EngineLoad(len(self.requests), 0, 64, len(self.requests), 0)
        self.say(EngineStep(self.steps, 0.01, shape, outputs, load))

    async def until_asked(self, count: int) -> list[str]:
        """The engine's names of its requests, as soon as there are `count` of them."""
        await eventually(lambda: len(self.requests) == count)
        return list(self.requests)


def handle(lease_id: str = "lease", **changes: Any) -> KvHandle:
    fields: dict[str, Any] = {
        "lease_id": lease_id,
        "worker_id": "prefill-0",
        "engine_epoch": "epoch",
        "lease_remaining_s": 30.0,
        "tokens": 3,
        "kv_bytes": 320,
        "compatibility": COMPATIBILITY,
        "transfer_params_json": "{}",
        "secret": "secret",
    }
    return KvHandle(**{**fields, **changes})


class TestRouter:
    """One session, spoken by hand."""

    __test__ = False

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = worker_pb2_grpc.WorkerStub(channel)
        self.call = self.stub.Session()

    async def hello(self, router_id: str) -> worker_pb2.WorkerDescription:
        await self.call.write(worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id=router_id)))
        first = await self.event()
        assert first.WhichOneof("event") == "description"
        return first.description

    async def submit(self, request_id: str, attempt: int = 0, **fields: Any) -> None:
        request = EngineRequest(
            **{
                "request_id": request_id,
                "token_ids": (1, 2, 3),
                "generated_tokens": 0,
                "sampling": SamplingOptions(max_tokens=10),
                **fields,
            }
        )
        await self.command(submit=wire.submit_to_wire(request, attempt))

    async def abort(self, request_id: str, attempt: int = 0) -> None:
        await self.command(abort=worker_pb2.Abort(request_id=request_id, attempt=attempt))

    async def release_kv(self, lease_id: str) -> None:
        await self.command(release_kv=worker_pb2.ReleaseKv(lease_id=lease_id))

    async def command(self, **command: Any) -> None:
        await self.call.write(worker_pb2.SessionRequest(**command))

    async def event(self) -> worker_pb2.SessionResponse:
        async with asyncio.timeout(PATIENCE_S):
            message = await self.call.read()
        assert isinstance(message, worker_pb2.SessionResponse), "the session has ended"
        return message

    async def next_of(self, kind: str) -> Any:
        """The next event of a kind; only loads may come before it."""
        while True:
            message = await self.event()
            if message.WhichOneof("event") == kind:
                return getattr(message, kind)
            assert message.WhichOneof("event") == "load", message

    async def ending(self) -> tuple[str, str]:
        """Code and details with which the session ends; a client hears them after all that was sent before."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    continue
            code = await self.call.code()
            return code.name, await self.call.details() or ""


class RunningWorker:
    """A worker process's runtime inside the test's process."""

    def __init__(self, process: WorkerProcess, engine: ScriptedEngine) -> None:
        self.process = process
        self.engine = engine
        self.exit: asyncio.Task[int] = asyncio.create_task(process.run())
        self._channels: list[grpc.aio.Channel] = []

    async def ready(self) -> RunningWorker:
        async with asyncio.timeout(PATIENCE_S):
            await self.process.serving.wait()
        return self

    def channel(self) -> grpc.aio.Channel:
        channel = open_channel(self.process.address, MIB)
        self._channels.append(channel)
        return channel

    async def router(self, router_id: str) -> TestRouter:
        router = TestRouter(self.channel())
        await router.hello(router_id)
        return router

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.exit

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        self.process.request_drain(0.0)
        await asyncio.wait((self.exit,), timeout=PATIENCE_S)
        assert self.exit.done()


def worker_process(
    policy: RolePolicy, engine: Any, redis: RedisSettings, worker_id: str = "worker-0", **options: Any
) -> WorkerProcess:
    worker = WorkerSettings(**{"drain_grace_s": 5.0, **options})
    return WorkerProcess(worker_id, worker, redis, policy, engine, TelemetrySettings())


@contextlib.asynccontextmanager
async def running_worker(policy: RolePolicy, redis: RedisSettings, **options: Any) -> AsyncIterator[RunningWorker]:
    engine = ScriptedEngine()
    worker = RunningWorker(worker_process(policy, engine, redis, **options), engine)
    try:
        yield await worker.ready()
    finally:
        await worker.close()
