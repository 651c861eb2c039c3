"""Stub workers: they speak the real Worker protocol and compute nothing, so that a router can be measured.

Not an engine, and no emulation of one: a step lasts what it is told to, whatever is in it, and every running request
gets one token in every step. `services/engine/emulated` models an engine; it composes its steps, and that costs more
than the router does.

    python -m benchmarks.router_cost.stub_workers REDIS_URL PREFIX MODEL CLOCKWORK PREFILL DECODE PREFILL_STEP_S STEP_S
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.router_cost.clockwork import STEPS, Clockwork, request_number, token_of
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import EngineFacts, EngineLoad
from services.rpc.options import server_options
from services.slo.performance import PerformanceCoefficients
from services.state.connection import StateConnection
from services.state.registration import Registration
from services.state.registry import WorkerRecord, WorkerRegistry, WorkerRole
from services.wire import (
    WorkerDescription,
    description_to_wire,
    lease_outcome_to_wire,
    load_to_wire,
    others_to_wire,
)
from services.worker.router_commitments import RouterCommitments
from slos_serve.v1 import sampling_pb2, worker_pb2, worker_pb2_grpc

BLOCK_TOKENS = 16
KV_BLOCKS = 1 << 20
KV_BYTES_PER_TOKEN = 1000
LEASE_S = 30.0
HEARTBEAT_S = 1.0
MESSAGE_BYTES = 64 << 20
MAX_STEP_TOKENS = 8192
COMPATIBILITY = Compatibility("stub", "bf16", "bf16", BLOCK_TOKENS, 1, "HND", "stub")

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Work:
    submit: worker_pb2.Submit
    session: _Session
    left: int
    context: int
    began_s: float
    first: bool = True


@dataclass(slots=True, eq=False)
class _Session:
    key: str
    events: asyncio.Queue[worker_pb2.SessionResponse] = field(default_factory=asyncio.Queue)


class StubWorker(worker_pb2_grpc.WorkerServicer):
    """One worker; steps only while it has work."""

    def __init__(self, number: int, role: WorkerRole, model: str, step_s: float, times: Clockwork) -> None:
        self.worker_id = f"{role.value}-{number}"
        self.peers: dict[str, StubWorker] = {}
        self._number = number
        self._role = role
        self._step_s = step_s
        self._times = times
        self._steps = 0
        self._work: dict[str, _Work] = {}
        self._leases: dict[str, _Session] = {}
        self._sessions: set[_Session] = set()
        self._awake = asyncio.Event()
        self._commitments = RouterCommitments(time.monotonic)
        self._opened = 0
        self.facts = EngineFacts(
            engine_epoch=f"{self.worker_id}-{time.time_ns()}",
            compatibility=COMPATIBILITY,
            model=model,
            max_context_tokens=8192,
            vocabulary_size=49152,
            eos_token_ids=(2,),
            kv_blocks_total=KV_BLOCKS,
            kv_bytes_per_token=KV_BYTES_PER_TOKEN,
            max_step_tokens=MAX_STEP_TOKENS,
            max_running_requests=4096,
            kv_lease_s=LEASE_S,
            performance=PerformanceCoefficients(step_s, 0.0, 0.0, 0.0, "stub"),
            emulated=True,
            kv_address_json="{}",
        )

    def load(self) -> EngineLoad:
        return EngineLoad(len(self._work), 0, KV_BLOCKS, min(KV_BLOCKS, 8 * len(self._work)), 8 * len(self._leases))

    # A coroutine that writes, as the real worker's.
    async def Session(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Context
    ) -> None:
        self._opened += 1
        session = _Session(str(self._opened))
        self._sessions.add(session)
        self._commitments.open(session.key)
        description = WorkerDescription(self.worker_id, self._role, self.facts, self.load(), draining=False)
        await context.write(worker_pb2.SessionResponse(description=description_to_wire(description)))
        reader = asyncio.create_task(self._read(session, request_iterator))
        try:
            while True:
                await context.write(await session.events.get())
        finally:
            reader.cancel()
            self._sessions.discard(session)
            self._commitments.close(session.key)
            self._work = {key: work for key, work in self._work.items() if work.session is not session}
            self._leases = {key: owner for key, owner in self._leases.items() if owner is not session}

    async def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: Context
    ) -> worker_pb2.DescribeResponse:
        description = WorkerDescription(self.worker_id, self._role, self.facts, self.load(), draining=False)
        return worker_pb2.DescribeResponse(description=description_to_wire(description))

    async def Drain(self, request: worker_pb2.DrainRequest, context: Context) -> worker_pb2.DrainResponse:  # noqa: N802
        return worker_pb2.DrainResponse(running_requests=len(self._work))

    async def _read(self, session: _Session, commands: AsyncIterator[worker_pb2.SessionRequest]) -> None:
        async for command in commands:
            for one in command.batch.commands or (command,):
                self._obey(session, one)

    def _obey(self, session: _Session, command: worker_pb2.SessionRequest) -> None:
        match command.WhichOneof("command"):
            case "submit":
                self._submit(session, command.submit)
            case "abort":
                self._work.pop(command.abort.request_id, None)
                self._commitments.drop(session.key, command.abort.request_id, command.abort.attempt)
            case "expect":
                self._commitments.expect(session.key, command.expect)
                self._tell(session)
            case "release_kv":
                self._leases.pop(command.release_kv.lease_id, None)

    def _submit(self, session: _Session, submit: worker_pb2.Submit) -> None:
        now_s = time.monotonic()
        if self._role is WorkerRole.PREFILL:
            self._times.arrived[request_number(submit.request_id)] = now_s
        left = 1 if submit.export_kv else submit.sampling.max_tokens - submit.generated_tokens
        self._work[submit.request_id] = _Work(submit, session, left, len(submit.token_ids), now_s)
        if submit.HasField("kv_source"):
            source = self.peers[submit.kv_source.worker_id]
            source.close_lease(submit.kv_source.lease_id)
        if self._commitments.submitted(session.key, submit):
            self._tell(session)
        self._awake.set()

    def _tell(self, committed: _Session) -> None:
        """Tell other routers as the real worker does: they hear at once what a router has promised."""
        for session in self._sessions - {committed}:
            message = worker_pb2.SessionResponse(load=load_to_wire(self.load()))
            message.load.others.CopyFrom(others_to_wire(self._commitments.others(session.key)))
            session.events.put_nowait(message)

    def close_lease(self, lease_id: str) -> None:
        session = self._leases.pop(lease_id, None)
        if session is not None:
            closed = worker_pb2.LeaseClosed(lease_id=lease_id, outcome=lease_outcome_to_wire(LeaseOutcome.PULLED))
            session.events.put_nowait(worker_pb2.SessionResponse(lease_closed=closed))

    async def run(self, phase: float) -> None:
        """Steps for ever, one each `step_s` while there is work; heartbeats while there is none.

        Args:
            phase: of a step, at which its steps begin: workers of a pool are out of step with each other.
        """
        due_s = time.monotonic()
        while True:
            if not self._work:
                self._awake.clear()
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await self._awake.wait()
                except TimeoutError:
                    self._beat()
                    continue
                due_s = time.monotonic() - (time.monotonic() - phase * self._step_s) % self._step_s
            given = list(self._work)
            due_s = max(due_s + self._step_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            self._step(given)

    def _beat(self) -> None:
        load = worker_pb2.WorkerLoad(kv_blocks_total=KV_BLOCKS)
        for session in self._sessions:
            session.events.put_nowait(worker_pb2.SessionResponse(load=load))

    def _step(self, given: list[str]) -> None:
        """One token for everything that was here when the step began."""
        self._steps += 1
        now_s = time.monotonic()
        prefills = self._role is WorkerRole.PREFILL
        token = (token_of(self._steps),)
        reports: dict[_Session, worker_pb2.StepReport] = {
            session: worker_pb2.StepReport() for session in self._sessions
        }
        context = requests = 0
        for request_id in given:
            work = self._work.get(request_id)
            if work is None:
                continue
            requests += 1
            context += work.context
            work.left -= 1
            work.context += 1
            submit = work.submit
            output = reports[work.session].outputs.add(request_id=request_id, attempt=submit.attempt, token_ids=token)
            if work.first:
                work.first = False
                self._first(work, output, now_s)
            if not work.left:
                output.finish_reason = sampling_pb2.FINISH_REASON_LENGTH
                del self._work[request_id]
                self._commitments.drop(work.session.key, request_id, submit.attempt)
                if submit.export_kv:
                    self._export(work, output)
            if prefills:
                self._times.first_token[request_number(request_id)] = now_s
        load = self.load()
        for session, report in reports.items():
            report.step, report.duration_s = self._steps, self._step_s
            report.made_at_s = time.monotonic()
            shape, wire_load = report.shape, report.load
            if prefills:
                shape.prefill_requests, shape.prefill_tokens = requests, min(context, MAX_STEP_TOKENS)
            else:
                shape.decode_requests = shape.decode_tokens = requests
                shape.decode_context_tokens = context
            wire_load.running_requests = load.running_requests
            wire_load.kv_blocks_total, wire_load.kv_blocks_used = load.kv_blocks_total, load.kv_blocks_used
            wire_load.kv_blocks_leased = load.kv_blocks_leased
            if self._commitments.shared:
                wire_load.others.CopyFrom(others_to_wire(self._commitments.others(session.key)))
            session.events.put_nowait(worker_pb2.SessionResponse(step=report))
        self._times.steps[self._number, self._steps % STEPS] = time.monotonic()

    def _first(self, work: _Work, output: worker_pb2.RequestOutput, now_s: float) -> None:
        timings = output.timings
        timings.wait_s = 0.0
        timings.run_s = now_s - work.began_s
        if work.submit.HasField("kv_source"):
            timings.kv_pull.bytes = work.submit.kv_source.bytes
            timings.kv_pull.transfer_s = 1e-4
            timings.kv_pull.wait_s = 1e-4

    def _export(self, work: _Work, output: worker_pb2.RequestOutput) -> None:
        kv = output.kv
        kv.lease_id = f"{self.worker_id}-{work.submit.request_id}-{work.submit.attempt}"
        kv.worker_id, kv.engine_epoch = self.worker_id, self.facts.engine_epoch
        kv.lease_remaining_s, kv.tokens = LEASE_S, len(work.submit.token_ids)
        kv.bytes = kv.tokens * KV_BYTES_PER_TOKEN
        kv.compatibility.CopyFrom(_COMPATIBILITY)
        kv.transfer_params_json = self.facts.kv_address_json
        self._leases[kv.lease_id] = work.session


_COMPATIBILITY = worker_pb2.Compatibility(
    model_fingerprint="stub",
    dtype="bf16",
    kv_cache_dtype="bf16",
    block_tokens=BLOCK_TOKENS,
    tensor_parallel=1,
    kv_layout="HND",
    engine="stub",
)


async def serve(
    redis_url: str, prefix: str, model: str, times: Clockwork, counts: tuple[int, int], steps_s: tuple[float, float]
) -> None:
    """Until killed."""
    state = StateConnection(redis_url, 2.0)
    registry = WorkerRegistry(state, prefix, 5.0)
    roles = [(WorkerRole.PREFILL, steps_s[0])] * counts[0] + [(WorkerRole.DECODE, steps_s[1])] * counts[1]
    workers = [StubWorker(number, role, model, step_s, times) for number, (role, step_s) in enumerate(roles)]
    peers = {worker.worker_id: worker for worker in workers}
    async with asyncio.TaskGroup() as tasks:
        for worker, (role, _) in zip(workers, roles, strict=True):
            worker.peers = peers
            server = grpc.aio.server(options=server_options(MESSAGE_BYTES))
            worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            facts = asdict(COMPATIBILITY)
            record = WorkerRecord(
                worker.worker_id, role, f"127.0.0.1:{port}", worker.facts.engine_epoch, facts, model, True
            )
            tasks.create_task(Registration(registry, record, HEARTBEAT_S, 6.0).run())
            tasks.create_task(worker.run(workers.index(worker) / len(workers)))
            tasks.create_task(server.wait_for_termination())


def main() -> None:
    redis_url, prefix, model, path, prefill, decode, prefill_step_s, step_s = sys.argv[1:]
    counts, steps_s = (int(prefill), int(decode)), (float(prefill_step_s), float(step_s))
    asyncio.run(serve(redis_url, prefix, model, Clockwork.open(Path(path)), counts, steps_s))


if __name__ == "__main__":
    main()
