"""Links to workers, of which one may send anything."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from router.cluster.links import WorkerLink, WorkerLinks
from router.requests.output_coalescer import OutputCoalescer
from services import wire
from services.identity.peer import PeerRole
from services.rpc.tls import ClusterTls
from services.state.registry import WorkerRecord, WorkerRegistry, WorkerRole
from slos_serve.v1 import worker_pb2, worker_pb2_grpc
from tests.support.audit_log import AuditLog
from tests.support.cluster_certificates import ClusterCertificates
from tests.support.eventually import eventually
from tests.unit.router.router_support import FACTS, description


class Worker(worker_pb2_grpc.WorkerServicer):
    """Describes itself as it is told, and then sends loads."""

    def __init__(self, described: wire.WorkerDescription, times: int = 1) -> None:
        self.hellos: list[worker_pb2.Hello] = []
        self._described = described
        self._times = times

    async def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[worker_pb2.SessionResponse]:
        self.hellos.append((await anext(request_iterator)).hello)
        for _ in range(self._times):
            yield worker_pb2.SessionResponse(description=wire.description_to_wire(self._described))
        while True:
            yield worker_pb2.SessionResponse(load=wire.load_to_wire(self._described.load))
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def serving(worker: Worker, tls: ClusterTls | None = None) -> AsyncIterator[str]:
    server = grpc.aio.server()
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", tls.credentials())
    worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@dataclass
class Listener:
    """Notes what it is told, and fails on the messages of one worker."""

    fails_on: str = ""
    connected_ids: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    losses: list[tuple[str, str]] = field(default_factory=list)

    def connected(self, link: WorkerLink, description: wire.WorkerDescription) -> None:
        self.connected_ids.append(link.worker_id)

    def event(self, link: WorkerLink, event: worker_pb2.SessionResponse) -> None:
        if link.worker_id == self.fails_on:
            raise OverflowError("a token id of 400 digits")
        self.events.append(link.worker_id)

    def lost(self, link: WorkerLink, why: str) -> None:
        self.losses.append((link.worker_id, why))


def record(worker_id: str, address: str) -> WorkerRecord:
    return WorkerRecord(worker_id, WorkerRole.DECODE, address, "1", asdict(FACTS.compatibility), "m", emulated=True)


@contextlib.asynccontextmanager
async def links_to(
    listener: Listener, *records: WorkerRecord, silence_s: float = 20.0
) -> AsyncIterator[asyncio.Task[None]]:
    async with secure_links_to(listener, None, *records, silence_s=silence_s) as (_, task):
        yield task


@contextlib.asynccontextmanager
async def secure_links_to(
    listener: Listener, tls: ClusterTls | None, *records: WorkerRecord, silence_s: float = 20.0
) -> AsyncIterator[tuple[WorkerLinks, asyncio.Task[None]]]:
    class Registry:
        async def workers(self) -> tuple[WorkerRecord, ...]:
            return records

    registry = cast("WorkerRegistry", Registry())
    links = WorkerLinks("router", registry, listener, 0.05, silence_s, 1 << 20, OutputCoalescer(), tls)
    task = asyncio.create_task(links.run())
    try:
        yield links, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_is_told_which_one_the_router_means() -> None:
    worker, listener = Worker(description("d1")), Listener()
    async with serving(worker) as address, links_to(listener, record("d1", address)):
        await eventually(lambda: "d1" in listener.events)
    assert worker.hellos == [worker_pb2.Hello(router_id="router", worker_id="d1")]


async def test_a_worker_that_gives_another_id_is_not_connected(
    caplog: pytest.LogCaptureFixture, audit_log: AuditLog
) -> None:
    listener = Listener()
    async with serving(Worker(description("d2"))) as address, links_to(listener, record("d1", address)):
        await eventually(lambda: "worker 'd2' answers at its address" in caplog.text)
    assert (listener.connected_ids, listener.events, listener.losses) == ([], [], [])
    assert ("registration", "refused", "d1") in audit_log.told()


async def test_a_worker_that_describes_itself_twice_is_let_go() -> None:
    listener = Listener()
    async with serving(Worker(description("d1"), times=2)) as address, links_to(listener, record("d1", address)):
        await eventually(lambda: listener.losses)
    assert listener.losses[0] == ("d1", "it described itself twice")


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1:1", "127.0.0.1:99999", "unix:/", "\x00", "a" * 5000])
async def test_whatever_one_worker_is_or_sends_the_links_to_others_stay(address: str) -> None:
    listener = Listener(fails_on="d1")
    async with (
        serving(Worker(description("d1"))) as failing,
        serving(Worker(description("d2"))) as good,
        links_to(listener, record("d0", address), record("d1", failing), record("d2", good)) as running,
    ):
        await eventually(lambda: ("d1", "a message of it could not be taken") in listener.losses)
        heard = listener.events.count("d2")
        await eventually(lambda: listener.events.count("d2") > heard + 2)
        assert not running.done()
    assert {worker_id for worker_id, _ in listener.losses if worker_id == "d0"} == set()


class MuteWorker(Worker):
    """Describes itself and then says nothing."""

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[worker_pb2.SessionResponse]:
        yield worker_pb2.SessionResponse(description=wire.description_to_wire(self._described))
        await asyncio.Event().wait()


async def test_a_worker_that_falls_silent_is_lost_and_called_again() -> None:
    listener = Listener()
    async with (
        serving(MuteWorker(description("d1"))) as address,
        links_to(listener, record("d1", address), silence_s=0.3),
    ):
        await eventually(lambda: len(listener.connected_ids) >= 2)
    assert listener.losses[0] == ("d1", "silent for 0.3 s")


async def test_links_that_are_let_go_say_so() -> None:
    listener = Listener()
    async with serving(Worker(description("d1"))) as address, links_to(listener, record("d1", address)):
        await eventually(lambda: listener.events)
    assert listener.losses == [("d1", "it was let go")]


class NoiseWorker(Worker):
    """Describes itself and then sends what is no message."""

    def handler(self) -> grpc.GenericRpcHandler:
        async def session(requests: Any, context: Any) -> None:
            described = worker_pb2.SessionResponse(description=wire.description_to_wire(self._described))
            await context.write(described.SerializeToString())
            await context.write(b"\x12\x7fabc")
            await asyncio.Event().wait()

        methods: dict[str, Any] = {"Session": grpc.stream_stream_rpc_method_handler(session)}
        return grpc.method_handlers_generic_handler("slos_serve.v1.Worker", methods)


async def test_bytes_that_are_no_message_end_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker, listener = NoiseWorker(description("d1")), Listener()
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers((worker.handler(),))
    await server.start()
    async with links_to(listener, record("d1", f"127.0.0.1:{port}")):
        await eventually(lambda: len(listener.losses) >= 3)
    await server.stop(0)
    worker_id, why = listener.losses[0]
    assert (worker_id, why.startswith("it does not speak our protocol: event: the bytes are no such message")) == (
        "d1",
        True,
    )
    assert "Traceback" not in caplog.text


class ClosingWorker(Worker):
    """Describes itself and closes the session."""

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[worker_pb2.SessionResponse]:
        yield worker_pb2.SessionResponse(description=wire.description_to_wire(self._described))


async def test_a_session_that_the_worker_closes_leaves_nobody_waiting_for_commands() -> None:
    listener = Listener()
    async with (
        serving(ClosingWorker(description("d1"))) as address,
        links_to(listener, record("d1", address)),
    ):
        await eventually(lambda: len(listener.losses) >= 3)
        senders = [task for task in asyncio.all_tasks() if "_consume_request_iterator" in repr(task)]
        assert len(senders) <= 1, "only a session that is open now has one"
    assert listener.losses[0] == ("d1", "the worker closed the session")


async def test_a_registration_without_the_certificate_for_it_gets_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who can write to Redis registers whatever it likes, and serves at the address that it gave."""
    ours = ClusterCertificates.create(tmp_path / "ours")
    foreign = ClusterCertificates.create(tmp_path / "foreign")
    real = Worker(description("d1"))
    rogues = {
        "rogue-open": (Worker(description("rogue-open")), None),
        "rogue-foreign": (Worker(description("rogue-foreign")), foreign.tls(PeerRole.WORKER, "rogue-foreign")),
        "rogue-named": (Worker(description("rogue-named")), ours.tls(PeerRole.WORKER, "d1")),
        "rogue-client": (Worker(description("rogue-client")), ours.tls(PeerRole.CLIENT)),
        "Rogue.Wild": (Worker(description("Rogue.Wild")), ours.tls(PeerRole.WORKER)),
    }
    listener = Listener()
    async with contextlib.AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(real, ours.tls(PeerRole.WORKER, "d1")))
        records = [record("d1", address)]
        for worker_id, (rogue, tls) in rogues.items():
            records.append(record(worker_id, await stack.enter_async_context(serving(rogue, tls))))
        router = ours.tls(PeerRole.ROUTER, "r1")
        links, _ = await stack.enter_async_context(secure_links_to(listener, router, *records))
        await eventually(lambda: set(links.unproven) == set(rogues) and "d1" in listener.events)
        assert links.unproven["rogue-named"] == "its certificate is that of somebody else"
        assert links.unproven["rogue-foreign"] == "none of the authorities in tls.ca has signed its certificate"
        assert "no DNS label" in links.unproven["Rogue.Wild"]
        assert any("worker rogue-open gets no work" in warning for warning in links.warnings)
        for worker_id in rogues:
            assert caplog.text.count(f"worker {worker_id} at") == 1, "said once, however often it is tried"
    assert set(listener.connected_ids) == {"d1"}
    assert [rogue.hellos for rogue, _ in rogues.values()] == [[]] * len(rogues)


async def test_a_worker_that_gets_its_certificate_later_gets_work(tmp_path: Path) -> None:
    ours = ClusterCertificates.create(tmp_path / "ours")
    tls = ours.tls(PeerRole.WORKER, "d1", expired=True)
    worker, listener = Worker(description("d1")), Listener()
    router = ours.tls(PeerRole.ROUTER, "r1")
    async with (
        serving(worker, tls) as address,
        secure_links_to(listener, router, record("d1", address)) as (links, _),
    ):
        await eventually(lambda: links.unproven == {"d1": "its certificate has expired"})
        ours.issue(PeerRole.WORKER, "d1")
        tls.watched._now = lambda: dt.datetime.now(dt.UTC)  # the fixture read the expired one as of its day
        await eventually(lambda: "d1" in listener.events)
        assert links.warnings == []
