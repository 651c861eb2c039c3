"""A worker that shows a certificate: who gets a session, who takes one over, and who drains it."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from prefill_worker.policy import PrefillPolicy
from services.config.cluster_tls import TlsSettings
from services.config.settings import RedisSettings, Settings, WorkerSettings
from services.identity.peer import PeerRole
from services.rpc.channel import open_channel
from services.telemetry.settings import TelemetrySettings
from services.worker.app import run_worker
from services.worker.process import WorkerProcess
from slos_serve.v1 import worker_pb2, worker_pb2_grpc
from tests.support.cluster_certificates import ClusterCertificates
from tests.unit.services.worker.worker_support import MIB, RunningWorker, ScriptedEngine, TestRouter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.rpc.tls import ClusterTls

TIMEOUT_S = 5.0


@pytest.fixture
def redis(redis_url: str, redis_prefix: str) -> RedisSettings:
    return RedisSettings(url=redis_url, prefix=redis_prefix, heartbeat_s=0.05, heartbeat_ttl_s=0.5)


@pytest.fixture
def certificates(tmp_path: Path) -> ClusterCertificates:
    return ClusterCertificates.create(tmp_path / "certs")


@contextlib.asynccontextmanager
async def secure_worker(redis: RedisSettings, tls: ClusterTls) -> AsyncIterator[RunningWorker]:
    engine = ScriptedEngine()
    options = WorkerSettings(drain_grace_s=5.0, channelz=True)
    process = WorkerProcess(tls.identity.id, options, redis, PrefillPolicy(), engine, TelemetrySettings(), tls=tls)
    worker = RunningWorker(process, engine)
    try:
        yield await worker.ready()
    finally:
        await worker.close()


@contextlib.asynccontextmanager
async def channel_of(caller: ClusterTls, worker: RunningWorker) -> AsyncIterator[grpc.aio.Channel]:
    secure = caller.target(PeerRole.WORKER, "w1")
    async with open_channel(worker.process.address, MIB, secure) as channel:
        yield channel


async def test_only_the_holder_of_a_session_takes_it_over(
    redis: RedisSettings, certificates: ClusterCertificates
) -> None:
    ours, others = certificates.tls(PeerRole.ROUTER, "r1"), certificates.tls(PeerRole.ROUTER, "r2")
    anybody = certificates.tls(PeerRole.ROUTER)
    async with (
        secure_worker(redis, certificates.tls(PeerRole.WORKER, "w1")) as worker,
        channel_of(ours, worker) as first,
        channel_of(ours, worker) as again,
        channel_of(others, worker) as theirs,
        channel_of(anybody, worker) as unbound,
    ):
        session = TestRouter(first)
        await session.hello("r1")
        await session.submit("request")
        await worker.engine.until_asked(1)

        for channel, said in ((theirs, "the certificate is that of router r2"), (unbound, "another identity")):
            thief = TestRouter(channel)
            await thief.command(hello=worker_pb2.Hello(router_id="r1"))
            code, detail = await thief.ending()
            assert code == "PERMISSION_DENIED"
            assert said in detail
        assert worker.engine.aborted == [], "the session and its request go on"

        await TestRouter(again).hello("r1")
        assert (await session.ending())[0] == "ABORTED", "its own router takes it over"

        await TestRouter(unbound).hello("r2")
        with pytest.raises(grpc.aio.AioRpcError, match="belongs to another identity"):
            await TestRouter(theirs).hello("r2")


async def test_several_processes_of_a_router_share_its_certificate(
    redis: RedisSettings, certificates: ClusterCertificates
) -> None:
    ours = certificates.tls(PeerRole.ROUTER, "r1")
    async with (
        secure_worker(redis, certificates.tls(PeerRole.WORKER, "w1")) as worker,
        channel_of(ours, worker) as channel,
    ):
        sessions = [TestRouter(channel), TestRouter(channel)]
        for index, session in enumerate(sessions):
            assert (await session.hello(f"r1-{index}")).worker_id == "w1"


@pytest.mark.parametrize("role", [PeerRole.WORKER, PeerRole.GATEWAY, PeerRole.CLIENT, PeerRole.OPERATOR])
async def test_only_routers_have_sessions(
    redis: RedisSettings, certificates: ClusterCertificates, role: PeerRole
) -> None:
    async with (
        secure_worker(redis, certificates.tls(PeerRole.WORKER, "w1")) as worker,
        channel_of(certificates.tls(role, "x"), worker) as channel,
    ):
        stranger = TestRouter(channel)
        code, detail = await stranger.ending()
        assert code == "PERMISSION_DENIED"
        assert f"that of {role} x" in detail


async def test_operators_drain_and_clients_do_not(redis: RedisSettings, certificates: ClusterCertificates) -> None:
    async with secure_worker(redis, certificates.tls(PeerRole.WORKER, "w1")) as worker:
        for role, code in ((PeerRole.CLIENT, "PERMISSION_DENIED"), (PeerRole.GATEWAY, "PERMISSION_DENIED")):
            async with channel_of(certificates.tls(role), worker) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=TIMEOUT_S)
                assert refused.value.code().name == code
        assert not worker.exit.done()
        async with channel_of(certificates.tls(PeerRole.OPERATOR), worker) as channel:
            await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=TIMEOUT_S)
        assert await worker.exit_code() == 0


async def test_a_worker_starts_with_a_certificate_of_its_own_only(
    redis: RedisSettings, certificates: ClusterCertificates, caplog: pytest.LogCaptureFixture
) -> None:
    worker, router = certificates.issue(PeerRole.WORKER, "w1"), certificates.issue(PeerRole.ROUTER)
    ca = certificates.authority.file
    cases = [
        (TlsSettings(ca=ca), "", "missing: tls.certificate, tls.key"),
        (TlsSettings(ca=ca, certificate=worker.path), "", "missing: tls.key"),
        (TlsSettings(ca=ca, certificate=worker.path, key=router.key), "", "tls.key: .* not the key of the cert"),
        (TlsSettings(ca=ca, certificate=router.path, key=router.key), "", "tls.certificate: .* any router .* worker"),
        (TlsSettings(ca=ca, certificate=worker.path, key=worker.key), "w2", "prefill_worker.id is w2, .* worker w1"),
    ]
    for tls, worker_id, said in cases:
        settings = Settings(redis=redis, tls=tls, engine={"kind": "emulated"})  # type: ignore[arg-type]
        caplog.clear()
        assert await run_worker(settings, WorkerSettings(id=worker_id), PrefillPolicy()) == 2
        assert re.search(said, caplog.text), caplog.text


async def test_a_worker_that_looks_at_no_certificate_listens_on_loopback_only(
    redis: RedisSettings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(redis=redis, engine={"kind": "emulated"})  # type: ignore[arg-type]
    assert await run_worker(settings, WorkerSettings(host="0.0.0.0"), PrefillPolicy()) == 2
    assert "prefill_worker.host = 0.0.0.0" in caplog.text
    assert "auth.insecure = true" in caplog.text


@pytest.mark.parametrize(("kind", "option"), [("vllm", "side_channel_host"), ("emulated", "kv_host")])
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
async def test_a_worker_that_looks_at_no_certificate_offers_kv_caches_on_loopback_only(
    redis: RedisSettings, caplog: pytest.LogCaptureFixture, kind: str, option: str, host: str
) -> None:
    exposed = {"kind": kind, kind: {option: host}}
    settings = Settings(redis=redis, engine=exposed)  # type: ignore[arg-type]
    assert await run_worker(settings, WorkerSettings(), PrefillPolicy()) == 2
    assert f"engine.{kind}.{option} = {host}: " in caplog.text

    # What may start comes to the next thing that is missing, which is a Redis here.
    caplog.clear()
    for accepted in (
        Settings(engine=exposed, auth={"insecure": True}),  # type: ignore[arg-type]
        Settings(engine={"kind": kind, kind: {option: "127.0.0.1"}}),  # type: ignore[arg-type]
        Settings(engine={"kind": kind}),  # type: ignore[arg-type]
    ):
        assert await run_worker(accepted, WorkerSettings(), PrefillPolicy()) == 1
    assert caplog.text.count("redis.url is empty") == 3
