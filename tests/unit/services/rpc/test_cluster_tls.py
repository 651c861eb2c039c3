"""Mutual TLS on the wire: real servers, real certificates, and everybody who should not get in."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import pytest
from cryptography import x509
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from cli.app import app
from services.identity.peer import PeerRole
from services.rpc.channel import open_channel
from services.rpc.peers import ANY_ROLE, PeerGuard, peer_of
from services.rpc.server import RpcServer
from services.rpc.tls import ClusterTls, SecureTarget, handshake_problem
from slos_serve.v1 import worker_pb2, worker_pb2_grpc
from tests.support.cluster_certificates import ClusterCertificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WORKER = "slos_serve.v1.Worker"
MIB = 1 << 20
SECONDS = 3.0
"""A refusal that takes longer counts as a hang."""
CODES = grpc.StatusCode


class Servicer(worker_pb2_grpc.WorkerServicer):
    """Notes who calls; a session answers each command."""

    def __init__(self) -> None:
        self.callers: list[str] = []

    async def Describe(self, request: Any, context: Any) -> worker_pb2.DescribeResponse:  # noqa: N802
        self.callers.append(str(peer_of(context)))
        return worker_pb2.DescribeResponse()

    async def Drain(self, request: Any, context: Any) -> worker_pb2.DrainResponse:  # noqa: N802
        return worker_pb2.DrainResponse()

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[worker_pb2.SessionResponse]:  # noqa: N802
        self.callers.append(str(peer_of(context)))
        async for _ in request_iterator:
            yield worker_pb2.SessionResponse(draining=worker_pb2.Draining())


@contextlib.asynccontextmanager
async def serving(tls: ClusterTls | None, cluster: str = "blue") -> AsyncIterator[tuple[Servicer, str]]:
    roles = {
        f"/{WORKER}/Session": frozenset({PeerRole.ROUTER}),
        f"/{WORKER}/Describe": frozenset({PeerRole.ROUTER}),
        f"/{health.SERVICE_NAME}/": ANY_ROLE,
    }
    guard = None if tls is None else PeerGuard(cluster, roles)
    server, servicer = RpcServer([WORKER], MIB, with_reflection=True, with_channelz=True, peers=guard), Servicer()
    worker_pb2_grpc.add_WorkerServicer_to_server(servicer, server.grpc)
    port = server.bind("127.0.0.1", 0, tls)
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def describe(address: str, secure: SecureTarget | None) -> worker_pb2.DescribeResponse:
    async with open_channel(address, MIB, secure) as channel:
        return await worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=SECONDS)


async def refusal(address: str, secure: SecureTarget | None) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await describe(address, secure)
    return raised.value.code(), handshake_problem(raised.value)


@pytest.fixture
def ours(tmp_path: Path) -> ClusterCertificates:
    return ClusterCertificates.create(tmp_path / "ours")


@pytest.fixture
def foreign(tmp_path: Path) -> ClusterCertificates:
    """Another authority, for a cluster of the same name."""
    return ClusterCertificates.create(tmp_path / "foreign")


async def test_both_ends_know_each_other(ours: ClusterCertificates) -> None:
    for worker_id in ("w1", ""):
        async with serving(ours.tls(PeerRole.WORKER, worker_id)) as (servicer, address):
            await describe(address, ours.tls(PeerRole.ROUTER, "r1").target(PeerRole.WORKER, "w1"))
            await describe(address, ours.tls(PeerRole.ROUTER).target(PeerRole.WORKER))
        assert servicer.callers == ["router r1 of cluster blue", "any router of cluster blue"]


@pytest.mark.parametrize("role", sorted(set(PeerRole) - {PeerRole.ROUTER, PeerRole.REDIS}))
async def test_a_caller_of_another_role_is_told_so(
    ours: ClusterCertificates, role: PeerRole, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(ours.tls(PeerRole.WORKER, "w1")) as (servicer, address):
        code, said = await refusal(address, ours.tls(role, "x").target(PeerRole.WORKER, "w1"))
        assert code is CODES.PERMISSION_DENIED
        assert f"Describe is for router of cluster blue; the certificate is that of {role} x" in said
        assert said in caplog.text
        assert servicer.callers == []


async def test_a_redis_certificate_calls_nobody(ours: ClusterCertificates) -> None:
    async with serving(ours.tls(PeerRole.WORKER, "w1")) as (servicer, address):
        code, _ = await refusal(address, ours.tls(PeerRole.REDIS).target(PeerRole.WORKER, "w1"))
        assert (code, servicer.callers) == (CODES.UNAVAILABLE, [])


async def test_a_caller_of_another_authority_or_time_or_without_certificate_is_refused(
    ours: ClusterCertificates, foreign: ClusterCertificates
) -> None:
    own = ours.tls(PeerRole.ROUTER, "r1").watched.current()
    name = ours.tls(PeerRole.ROUTER).target(PeerRole.WORKER, "w1").server_name
    stranger = foreign.tls(PeerRole.ROUTER, "r1").watched.current()
    nobody = SecureTarget(grpc.ssl_channel_credentials(own.authorities), name)
    forged = SecureTarget(grpc.ssl_channel_credentials(own.authorities, stranger.key, stranger.chain), name)
    expired = ours.tls(PeerRole.ROUTER, "r2", expired=True).target(PeerRole.WORKER, "w1")
    async with serving(ours.tls(PeerRole.WORKER, "w1")) as (servicer, address):
        for secure in (nobody, forged, expired):
            code, said = await refusal(address, secure)
            assert code is CODES.UNAVAILABLE
            assert "does not accept the certificate of this process" in said
        code, _ = await refusal(address, None)
        assert code is CODES.UNAVAILABLE
        assert servicer.callers == []


async def test_the_process_of_another_cluster_is_refused_under_a_shared_authority(
    ours: ClusterCertificates,
) -> None:
    """The worker's guard is that of cluster green, whose certificates the same authority signs."""
    async with serving(ours.tls(PeerRole.WORKER, "w1"), cluster="green") as (_, address):
        code, said = await refusal(address, ours.tls(PeerRole.ROUTER, "r1").target(PeerRole.WORKER, "w1"))
    assert code is CODES.PERMISSION_DENIED
    assert "of cluster green" in said


@pytest.mark.parametrize(
    ("role", "worker_id", "problem"),
    [
        (PeerRole.WORKER, "w2", "its certificate is that of somebody else"),
        (PeerRole.ROUTER, "w1", "its certificate is that of somebody else"),
        (PeerRole.GATEWAY, "", "its certificate is that of somebody else"),
    ],
)
async def test_a_server_with_the_certificate_of_another_hears_nothing(
    ours: ClusterCertificates, role: PeerRole, worker_id: str, problem: str
) -> None:
    async with serving(ours.tls(role, worker_id)) as (servicer, address):
        code, said = await refusal(address, ours.tls(PeerRole.ROUTER, "r1").target(PeerRole.WORKER, "w1"))
        assert (code, said, servicer.callers) == (CODES.UNAVAILABLE, problem, [])


async def test_a_server_of_another_authority_or_time_or_without_certificate_hears_nothing(
    ours: ClusterCertificates, foreign: ClusterCertificates
) -> None:
    target = ours.tls(PeerRole.ROUTER, "r1").target(PeerRole.WORKER, "w1")
    cases = [
        (foreign.tls(PeerRole.WORKER, "w1"), "none of the authorities in tls.ca has signed its certificate"),
        (ours.tls(PeerRole.WORKER, "w1", expired=True), "its certificate has expired"),
        (None, "it does not speak TLS"),
    ]
    for tls, problem in cases:
        async with serving(tls) as (servicer, address):
            assert await refusal(address, target) == (CODES.UNAVAILABLE, problem)
            assert servicer.callers == []


async def test_what_is_not_named_is_an_operators(ours: ClusterCertificates) -> None:
    """Drain of this table, and channelz, whose handlers run in threads."""
    async with serving(ours.tls(PeerRole.WORKER, "w1")) as (_, address):
        for role, allowed in ((PeerRole.OPERATOR, True), (PeerRole.ROUTER, False)):
            secure = ours.tls(role, "x").target(PeerRole.WORKER, "w1")
            async with open_channel(address, MIB, secure) as channel:
                channelz: Any = channelz_pb2_grpc.ChannelzStub(cast("grpc.Channel", channel))
                calls = [
                    worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=SECONDS),
                    channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=SECONDS),
                ]
                for call in calls:
                    assert (await call.code() is CODES.OK) == allowed
                    assert allowed or await call.code() is CODES.PERMISSION_DENIED
                probe: Any = health_pb2_grpc.HealthStub(channel)
                await probe.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)


async def test_a_replaced_certificate_holds_for_the_next_connection_and_breaks_no_stream(
    ours: ClusterCertificates,
) -> None:
    tls = ours.tls(PeerRole.WORKER, "w1")
    router = ours.tls(PeerRole.ROUTER, "r1")
    async with serving(tls) as (_, address), open_channel(address, MIB, router.target(PeerRole.WORKER)) as channel:
        session = worker_pb2_grpc.WorkerStub(channel).Session()
        await session.write(worker_pb2.SessionRequest())
        assert isinstance(await session.read(), worker_pb2.SessionResponse)
        before = await shown_serial(address)

        tls.watched.files.key.write_text("half written")
        assert await shown_serial(address) == before
        assert "the replaced certificate is not used: tls.key" in tls.watched.warning()
        renewed = ours.issue(PeerRole.WORKER, "w1")
        after = x509.load_pem_x509_certificate(renewed.path.read_bytes()).serial_number
        assert await shown_serial(address) == after != before
        assert tls.watched.warning() == ""

        await session.write(worker_pb2.SessionRequest())
        assert isinstance(await session.read(), worker_pb2.SessionResponse)
        ours.issue(PeerRole.ROUTER, "r1")
        await describe(address, router.target(PeerRole.WORKER, "w1"))


async def test_another_authority_takes_over_without_a_restart(
    ours: ClusterCertificates, foreign: ClusterCertificates
) -> None:
    tls, router = ours.tls(PeerRole.WORKER, "w1"), ours.tls(PeerRole.ROUTER, "r1")
    newcomer = foreign.tls(PeerRole.ROUTER, "r1")
    async with serving(tls) as (_, address):
        both = ours.authority.file.read_bytes() + foreign.authority.file.read_bytes()
        assert (await refusal(address, newcomer.target(PeerRole.WORKER)))[0] is CODES.UNAVAILABLE
        for files in (tls.watched.files, newcomer.watched.files):
            files.authorities.write_bytes(both)
        await describe(address, newcomer.target(PeerRole.WORKER))
        await describe(address, router.target(PeerRole.WORKER))


async def test_a_health_check_shows_a_certificate(ours: ClusterCertificates) -> None:
    """That of the worker itself, as a container has it."""
    tls = ours.tls(PeerRole.WORKER, "w1")
    files = tls.watched.files
    options = ["--ca-file", files.authorities, "--certificate-file", files.chain, "--key-file", files.key]
    async with serving(tls) as (_, address):
        for count, code in ((6, 0), (2, 1), (4, 2)):
            command = ["health", address, *map(str, options[:count])]
            outcome = await asyncio.to_thread(CliRunner().invoke, app, command)
            assert outcome.exit_code == code, outcome.output


async def shown_serial(address: str) -> int:
    """Serial number of the certificate in a handshake of our own; TLS 1.2 shows it to callers without one, too."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(certificate).serial_number
