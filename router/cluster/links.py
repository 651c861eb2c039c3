"""The sessions to workers: one to every registered worker, for as long as both live."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from router.cluster.silence import SilenceWatch
from router.requests.output_coalescer import OutputCoalescer, ReportDelay
from services import wire
from services.audit import EventKind, Outcome, note
from services.identity.peer import PeerIdentityError, PeerRole
from services.rpc.channel import open_channel
from services.rpc.tls import ClusterTls, handshake_problem
from services.shown import clipped
from services.state.connection import StateUnavailableError
from services.state.registry import WorkerRecord, WorkerRegistry
from slos_serve.v1 import worker_pb2

log = logging.getLogger(__name__)

RETRY_S = 0.5
BATCH_BYTES = 1 << 20
"""Bytes beyond which a message of several commands takes no more; workers refuse messages that are far longer."""

SESSION = f"/{worker_pb2.DESCRIPTOR.services_by_name['Worker'].full_name}/Session"

_END = worker_pb2.SessionRequest()
"""Mark behind the last command of a session. It is compared by identity and never sent."""

SessionCall = grpc.aio.StreamStreamCall[worker_pb2.SessionRequest, worker_pb2.SessionResponse]


class LinkListener(Protocol):
    """A listener to the links to workers. It is called on the event loop and must not block."""

    def connected(self, link: WorkerLink, description: wire.WorkerDescription) -> None:
        """A worker has described itself, as the first thing on its session."""
        ...

    def event(self, link: WorkerLink, event: worker_pb2.SessionResponse) -> None:
        """A connected worker has sent a message."""
        ...

    def lost(self, link: WorkerLink, why: str) -> None:
        """A session has ended, for the reason in words. Called once for every `connected`."""
        ...


@dataclass(slots=True, eq=False)
class WorkerLink:
    """The router's end of the session to one worker."""

    record: WorkerRecord
    connected: bool = False
    """Whether the worker has described itself."""
    silent: bool = False
    """Whether the session was ended because the worker said nothing."""
    call: SessionCall | None = None
    commands: asyncio.Queue[worker_pb2.SessionRequest] = field(default_factory=asyncio.Queue)

    @property
    def worker_id(self) -> str:
        return self.record.worker_id

    def send(self, command: worker_pb2.SessionRequest) -> None:
        """Queue a command. This never blocks: gRPC's flow control is behind the queue."""
        self.commands.put_nowait(command)

    def end(self) -> None:
        """Let the sender of commands end: gRPC leaves it waiting for ever when a call ended before it was cancelled."""
        self.commands.put_nowait(_END)


class WorkerLinks:
    """Opens a link to every worker in the registry, and again after a loss while the registry names the worker."""

    def __init__(
        self,
        router_id: str,
        registry: WorkerRegistry,
        listener: LinkListener,
        poll_s: float,
        silence_s: float,
        max_message_bytes: int,
        coalescer: OutputCoalescer,
        tls: ClusterTls | None = None,
    ) -> None:
        """
        Args:
            tls: what the router shows to workers, and demands of them; None: it talks to them unencrypted.
            poll_s: seconds between two readings of the registry.
            silence_s: a worker that says nothing for so many seconds is lost, even if its connection stands: an idle
                worker reports its load with every heartbeat.
            coalescer: told how long the reports of workers waited to be read.
        """
        self._router_id = router_id
        self._max_message_bytes = max_message_bytes
        self._coalescer = coalescer
        self._registry = registry
        self._listener = listener
        self._poll_s = poll_s
        self._silence = SilenceWatch[WorkerLink](silence_s, time.monotonic())
        self._links: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.registered: dict[str, WorkerRecord] = {}
        """The records that the registry held when it was last read, by worker id."""
        self._tls = tls
        self._unproven: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """What an operator should know: of this router's certificate, and of workers that get no work for theirs."""
        own = "" if self._tls is None else self._tls.watched.warning()
        workers = (f"worker {worker_id} gets no work: {why}" for worker_id, why in self.unproven.items())
        return [*filter(None, (own,)), *workers]

    @property
    def unproven(self) -> dict[str, str]:
        """Why registered workers get no work: they show no certificate as theirs, or refuse this router's. By id."""
        return {worker_id: why for worker_id, why in self._unproven.items() if worker_id in self.registered}

    async def run(self) -> None:
        """Follow the registry until cancelled. While Redis is away, the links that there are stay open."""
        watching = asyncio.create_task(self._watch(), name="silence of workers")
        try:
            while True:
                try:
                    records = await self._registry.workers()
                except StateUnavailableError:
                    # The connection has already said so, once; what is connected stays connected.
                    records = tuple(self.registered.values())
                self.registered = {record.worker_id: record for record in records}
                self._links = {key: task for key, task in self._links.items() if not task.done()}
                for record in records:
                    key = (record.worker_id, record.engine_epoch)
                    if key not in self._links:
                        self._links[key] = asyncio.create_task(self._hold(record), name=f"link {record.worker_id}")
                await asyncio.sleep(self._poll_s)
        finally:
            tasks = [watching, *self._links.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """End the sessions of workers that have been silent for too long, until cancelled."""
        self._silence.checked_s = time.monotonic()
        while True:
            await asyncio.sleep(self._silence.interval_s)
            for link in self._silence.check(time.monotonic()):
                link.silent = True
                if link.call is not None:
                    link.call.cancel()

    async def _hold(self, record: WorkerRecord) -> None:
        """Keep one session, from its opening to its loss. The registry decides whether there is another."""
        link = WorkerLink(record)
        why = "it was let go"
        try:
            secure = None if self._tls is None else self._tls.target(PeerRole.WORKER, record.worker_id)
        except PeerIdentityError as error:
            await self._not_proven(record, str(error))
            return
        async with open_channel(record.address, self._max_message_bytes, secure) as channel:
            call = link.call = _session(channel)(_outgoing(self._router_id, link))
            self._silence.heard(link, time.monotonic())
            refused = ""
            try:
                why = await self._follow(call, link)
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
                refused = "" if secure is None or link.connected else handshake_problem(error)
            except wire.WireError as error:
                why = f"it does not speak our protocol: {error}"
            except asyncio.CancelledError:
                if not link.silent:
                    raise
                why = f"silent for {self._silence.silence_s:g} s"
            except Exception:
                # Whatever one worker sends, the links to the others stay.
                log.exception("a message of worker %s could not be taken", record.worker_id)
                why = "a message of it could not be taken"
            finally:
                self._silence.forget(link)
                link.end()
                call.cancel()
                if link.connected:
                    self._listener.lost(link, why)
            if refused:
                await self._not_proven(record, refused)
            elif not link.connected:
                log.warning("no session with %s at %s: %s", record.worker_id, record.address, why)
                await asyncio.sleep(RETRY_S)

    async def _not_proven(self, record: WorkerRecord, why: str) -> None:
        """Say that a registered worker gets no work, once for each reason, and wait before the next attempt."""
        if self._unproven.get(record.worker_id) != why:
            self._unproven[record.worker_id] = why
            log.warning("worker %s at %s gets no work: %s", clipped(record.worker_id), clipped(record.address), why)
            note(EventKind.REGISTRATION, Outcome.REFUSED, record.worker_id, detail=why)
        await asyncio.sleep(RETRY_S)

    async def _follow(self, call: SessionCall, link: WorkerLink) -> str:
        """Pass on what a worker says until its session ends; return why it ended.

        Raises:
            AioRpcError, WireError: it broke, or the worker talks nonsense.
            CancelledError: the worker has been silent for too long, or the link is let go.
        """
        delay = ReportDelay()
        while isinstance(event := await call.read(), worker_pb2.SessionResponse):
            self._silence.heard(link, time.monotonic())
            if event.WhichOneof("event") == "description":
                description = wire.description_from_wire(event.description)
                if refusal := _refusal(link, description):
                    note(EventKind.REGISTRATION, Outcome.REFUSED, link.worker_id, detail=refusal)
                    return refusal
                link.connected = True
                self._unproven.pop(link.worker_id, None)
                self._listener.connected(link, description)
            elif link.connected:
                if event.HasField("step") and event.step.made_at_s:
                    self._coalescer.report_waited(delay.waited_s(event.step.made_at_s, time.monotonic()))
                self._listener.event(link, event)
        if isinstance(event, DecodeError):
            raise wire.WireError("event", f"the bytes are no such message: {event}")
        return "the worker closed the session"


def _refusal(link: WorkerLink, description: wire.WorkerDescription) -> str:
    """Return why a description is not that of the worker that was called; empty if it is."""
    if link.connected:
        return "it described itself twice"
    if description.facts.engine_epoch != link.record.engine_epoch:
        return "another engine answers at its address"
    if description.worker_id != link.record.worker_id:
        return f"worker {clipped(description.worker_id)!r} answers at its address"
    return ""


def _session(channel: grpc.aio.Channel) -> Callable[[AsyncIterator[worker_pb2.SessionRequest]], SessionCall]:
    """Return the method that opens a session.

    Unlike the generated stub's, it gives bytes that are no message as the error in them: the stub has gRPC log a
    traceback.
    """
    serialize = worker_pb2.SessionRequest.SerializeToString
    return cast("Any", channel).stream_stream(SESSION, serialize, _read_response)  # type: ignore[no-any-return]


def _read_response(content: bytes) -> worker_pb2.SessionResponse | DecodeError:
    try:
        return worker_pb2.SessionResponse.FromString(content)
    except DecodeError as error:
        return error


async def _outgoing(router_id: str, link: WorkerLink) -> AsyncIterator[worker_pb2.SessionRequest]:
    """Yield messages of as many commands as wait, because messages are what costs."""
    yield worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id=router_id, worker_id=link.worker_id))
    while True:
        commands = [await link.commands.get()]
        if commands[0] is _END:
            return
        size = commands[0].ByteSize()
        while not link.commands.empty() and size < BATCH_BYTES:
            if (command := link.commands.get_nowait()) is _END:
                return
            commands.append(command)
            size += commands[-1].ByteSize()
        yield commands[0] if len(commands) == 1 else _batch(commands)


def _batch(commands: list[worker_pb2.SessionRequest]) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(batch=worker_pb2.CommandBatch(commands=commands))
