"""Workers that say what they are told to, to the router that opens sessions with them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import grpc.aio

from services import wire
from services.state.registry import WorkerRecord, WorkerRegistry, WorkerRole
from slos_serve.v1 import worker_pb2
from tests.fuzz.watch import FaultError
from tests.unit.router.router_support import FACTS, description

SAYS = f"/{worker_pb2.DESCRIPTOR.services_by_name['Worker'].full_name}/Session"
PATIENCE_S = 60.0
"""Seconds in which a router must have opened a session again, and read what it was sent."""
KNOWN_REQUESTS = 50
MODEL = "tiny"


@dataclass(slots=True, eq=False)
class Puppet:
    """One worker, whose next session says the next input."""

    worker_id: str
    role: WorkerRole
    known: list[tuple[str, int]] = field(default_factory=list)
    """Requests that the router has given this worker lately, with their attempts."""
    free: asyncio.Lock = field(default_factory=asyncio.Lock)
    _lines: asyncio.Queue[tuple[bytes | None, Sequence[bytes], asyncio.Event]] = field(default_factory=asyncio.Queue)

    def described(self) -> worker_pb2.WorkerDescription:
        """Return an honest description."""
        return wire.description_to_wire(
            replace(
                description(self.worker_id), role=self.role, facts=replace(FACTS, model=MODEL, vocabulary_size=1024)
            )
        )

    async def say(self, first: bytes | None, frames: Sequence[bytes]) -> None:
        """Say something on a session, and wait until the router has read it or has ended the session.

        Args:
            first: what to say of itself, on a new session; None: what is true, if the session is new at all.

        Raises:
            FaultError: the router does not come back.
        """
        said = asyncio.Event()
        self._lines.put_nowait((first, frames, said))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await said.wait()
        except TimeoutError:
            raise FaultError(f"the router has no session with {self.worker_id}") from None

    async def session(self, commands: Any, context: Any) -> None:
        """Serve one session until the router ends it."""
        listening = asyncio.create_task(self._listen(commands))
        described = False
        try:
            while True:
                first, frames, said = line = await self._next(described)
                if described and first is not None:
                    # What a worker says of itself is read on a new session.
                    self._lines.put_nowait(line)
                    return
                try:
                    if not described:
                        await context.write(first or _described(self.described()))
                        described = True
                    for frame in frames:
                        await context.write(frame)
                    # A router that ends the session because of this does so at once.
                    await asyncio.sleep(0.005)
                finally:
                    said.set()
        finally:
            listening.cancel()

    async def _next(self, described: bool) -> tuple[bytes | None, Sequence[bytes], asyncio.Event]:
        if described:
            return await self._lines.get()
        try:
            async with asyncio.timeout(0.05):
                return await self._lines.get()
        except TimeoutError:
            return None, (), asyncio.Event()

    async def _listen(self, commands: AsyncIterator[bytes]) -> None:
        async for content in commands:
            command = worker_pb2.SessionRequest.FromString(content)
            for one in command.batch.commands or (command,):
                if one.HasField("submit"):
                    self.known.append((one.submit.request_id, one.submit.attempt))
            del self.known[:-KNOWN_REQUESTS]


def _described(message: worker_pb2.WorkerDescription) -> bytes:
    return worker_pb2.SessionResponse(description=message).SerializeToString()


class _Handlers(grpc.GenericRpcHandler):
    """Serves sessions by bytes, so that a puppet can say what is no message."""

    def __init__(self, puppet: Puppet) -> None:
        self._handler: Any = grpc.stream_stream_rpc_method_handler(puppet.session)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler if handler_call_details.method == SAYS else None


@contextlib.asynccontextmanager
async def running_puppet(registry: WorkerRegistry, worker_id: str, role: WorkerRole) -> AsyncIterator[Puppet]:
    """Serve one puppet, and register it."""
    puppet = Puppet(worker_id, role)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handlers(puppet),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    record = WorkerRecord(worker_id, role, address, FACTS.engine_epoch, asdict(FACTS.compatibility), "m", emulated=True)
    await registry.put(record)
    try:
        yield puppet
    finally:
        await server.stop(0)
