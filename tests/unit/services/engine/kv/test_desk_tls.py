"""Claims over mutual TLS: between workers of one cluster, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.engine.kv.backend import ClaimRefusedError
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.handle import LeaseOutcome
from services.identity.certificate_files import WatchedCredentials
from services.identity.desk_tls import WorkerDeskTls
from services.identity.peer import PeerRole
from tests.support.audit_log import AuditLog
from tests.support.cluster_certificates import ClusterCertificates
from tests.support.eventually import eventually
from tests.unit.services.engine.kv.kv_support import BACKENDS, PROMPT, Backend, TestEngine

every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
Story = Callable[[TestEngine, TestEngine], Awaitable[None]]


@pytest.fixture
def blue(tmp_path: Path) -> ClusterCertificates:
    return ClusterCertificates.create(tmp_path / "blue", "blue")


def desk(certificates: ClusterCertificates, role: PeerRole = PeerRole.WORKER, process_id: str = "") -> WorkerDeskTls:
    return WorkerDeskTls(WatchedCredentials(certificates.files(certificates.issue(role, process_id))))


@contextlib.asynccontextmanager
async def engines(
    backend: Backend, exporter: DeskTls | None, puller: DeskTls | None
) -> AsyncIterator[list[TestEngine]]:
    made = [TestEngine(backend, "prefill-0", tls=exporter), TestEngine(backend, "decode-0", tls=puller)]
    for engine in made:
        await engine.kv.start("127.0.0.1")
    try:
        yield made
    finally:
        for engine in made:
            await engine.kv.stop()


async def refusal(puller: TestEngine, handle: object) -> str:
    with pytest.raises(ClaimRefusedError) as caught:
        await puller.kv.claim(handle, PROMPT, asyncio.get_running_loop().time())  # type: ignore[arg-type]
    return str(caught.value)


@every_backend
async def test_workers_of_a_cluster_claim_of_each_other(backend: Backend, blue: ClusterCertificates) -> None:
    async with engines(backend, desk(blue, process_id="prefill-0"), desk(blue)) as (exporter, puller):
        handle = exporter.export()
        claim = await puller.kv.claim(handle, PROMPT, asyncio.get_running_loop().time())
        assert claim.terms.tokens == len(PROMPT)
        if not backend.one_sided:
            await puller.moves.receive(claim)
            await eventually(lambda: "a" in exporter.freed)
            assert exporter.freed["a"][0] is LeaseOutcome.PULLED
        else:
            claim.give_back()
        assert await refusal(puller, replace(exporter.export("b"), secret="guess")) == "the lease is unknown"


@every_backend
@pytest.mark.parametrize("role", [role for role in PeerRole if role is not PeerRole.WORKER])
async def test_no_other_role_claims_even_with_the_secret(
    backend: Backend,
    blue: ClusterCertificates,
    role: PeerRole,
    caplog: pytest.LogCaptureFixture,
    audit_log: AuditLog,
) -> None:
    async with engines(backend, desk(blue), desk(blue, role)) as (exporter, puller):
        assert await refusal(puller, exporter.export())
        assert exporter.freed == {}
    # The certificate of a Redis is a server's only, so that TLS itself refuses it.
    why = f"leases are for workers of cluster blue; the certificate is that of any {role} of cluster blue"
    assert role is PeerRole.REDIS or why in caplog.text
    assert role is PeerRole.REDIS or [line["detail"] for line in audit_log.lines()] == [why]


@every_backend
async def test_strangers_and_those_who_do_not_encrypt_hear_nothing(
    backend: Backend, blue: ClusterCertificates, tmp_path: Path
) -> None:
    red = ClusterCertificates.create(tmp_path / "red", "blue")
    async with engines(backend, desk(blue), desk(red)) as (exporter, puller):
        assert "certificate is not accepted" in await refusal(puller, exporter.export())
    async with engines(backend, desk(blue), None) as (exporter, puller):
        assert await refusal(puller, exporter.export()), "in the clear"
        assert exporter.freed == {}
    async with engines(backend, None, desk(blue)) as (exporter, puller):
        assert await refusal(puller, exporter.export()), "an exporter that does not encrypt gets no secret"
    async with engines(backend, desk(blue), None) as (exporter, _):
        handle = exporter.export()
        address = json.loads(handle.transfer_params_json)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(address["host"], address["port"], ssl=context)
        writer.write(exporter.moves.claim(handle))
        with pytest.raises((OSError, EOFError)):
            await reader.readuntil()
        assert exporter.freed == {}


async def test_who_never_ends_the_handshake_takes_no_more_connections_than_who_never_claims(
    blue: ClusterCertificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.engine.kv.claim_server.MAX_SILENT", 5)
    monkeypatch.setattr("services.engine.kv.claim_server.CLAIM_WAIT_S", 3600.0)
    async with engines(BACKENDS[0], desk(blue), desk(blue)) as (exporter, puller):
        address = json.loads(exporter.export().transfer_params_json)
        opened = [await asyncio.open_connection(address["host"], address["port"]) for _ in range(25)]

        def ended() -> int:
            return sum(reader.at_eof() or reader.exception() is not None for reader, _ in opened)

        await eventually(lambda: ended() == 20)
        handle = exporter.export("b")
        assert await refusal(puller, handle)
        assert ended() == 20, "the others wait in the handshake"
        for _, writer in opened:
            writer.close()

        async def has_room() -> bool:
            try:
                claim = await puller.kv.claim(handle, PROMPT, asyncio.get_running_loop().time())
            except ClaimRefusedError:
                return False
            claim.give_back()
            return True

        await eventually(has_room)


async def test_who_never_ends_the_handshake_is_hung_up_on(
    blue: ClusterCertificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.engine.kv.claim_server.CLAIM_WAIT_S", 0.05)
    async with engines(BACKENDS[0], desk(blue), desk(blue)) as (exporter, _):
        address = json.loads(exporter.export().transfer_params_json)
        reader, writer = await asyncio.open_connection(address["host"], address["port"])
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        writer.close()


@every_backend
async def test_a_claim_goes_to_the_worker_that_the_handle_names(backend: Backend, blue: ClusterCertificates) -> None:
    for impostor in (desk(blue, process_id="prefill-1"), desk(blue, PeerRole.ROUTER), desk(blue, PeerRole.GATEWAY)):
        async with engines(backend, impostor, desk(blue)) as (exporter, puller):
            said = await refusal(puller, exporter.export())
            assert "certificate is not accepted" in said
            assert "ostname mismatch" in said
            assert exporter.freed == {}


async def test_an_id_that_no_certificate_can_carry_is_not_asked_for(blue: ClusterCertificates) -> None:
    async with engines(BACKENDS[0], desk(blue), desk(blue)) as (exporter, puller):
        handle = replace(exporter.export(), worker_id="../evil")
        assert "is no DNS label" in await refusal(puller, handle)


async def test_a_replaced_certificate_holds_for_the_next_claim(blue: ClusterCertificates, tmp_path: Path) -> None:
    old, new = blue, ClusterCertificates.create(tmp_path / "new", "blue")
    names = ("ca", "certificate", "key")
    ours = [tmp_path / name for name in names]

    def put(certificates: ClusterCertificates, *, trusting: bytes) -> None:
        issued = certificates.issue(PeerRole.WORKER)
        contents = (trusting, issued.path.read_bytes(), issued.key.read_bytes())
        for file, content in zip(ours, contents, strict=True):
            file.with_suffix(".new").write_bytes(content)
            file.with_suffix(".new").replace(file)

    both = old.authority.file.read_bytes() + new.authority.file.read_bytes()
    put(old, trusting=both)
    files = replace(old.files(old.issue(PeerRole.WORKER)), authorities=ours[0], chain=ours[1], key=ours[2])
    changing = WorkerDeskTls(WatchedCredentials(files))
    async with engines(BACKENDS[0], changing, desk(new)) as (exporter, puller):
        assert "certificate is not accepted" in await refusal(puller, exporter.export("a"))
        put(new, trusting=both)
        claim = await puller.kv.claim(exporter.export("b"), PROMPT, asyncio.get_running_loop().time())
        claim.give_back()
        ours[1].write_bytes(b"rubbish")
        claim = await puller.kv.claim(exporter.export("c"), PROMPT, asyncio.get_running_loop().time())
        claim.give_back()
