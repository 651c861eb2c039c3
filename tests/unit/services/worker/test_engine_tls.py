"""Engines of workers that show certificates hand KV caches to each other, and to no engine without one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from services.config.settings import Settings
from services.engine.protocol import Engine, EngineRequest, EngineStep, RequestOutput, SamplingOptions
from services.identity.certificate_files import WatchedCredentials
from services.identity.desk_tls import WorkerDeskTls
from services.identity.peer import PeerRole
from services.worker.engine_factory import create_engine
from tests.support.cluster_certificates import ClusterCertificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SETTINGS = Settings.model_validate({"engine": {"kind": "emulated", "emulated": {"time_scale": 0.01}}})
PROMPT, SAMPLING = tuple(range(100, 300)), SamplingOptions(max_tokens=4, ignore_eos=True)


@pytest.fixture
def certificates(tmp_path: Path) -> ClusterCertificates:
    return ClusterCertificates.create(tmp_path / "certs")


@contextlib.asynccontextmanager
async def started(worker_id: str, tls: WorkerDeskTls | None) -> AsyncIterator[Engine]:
    engine = create_engine(SETTINGS, worker_id, "127.0.0.1", tls)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.shutdown()


async def first_output(engine: Engine, request: EngineRequest) -> RequestOutput:
    """Return the first output that has tokens."""
    await engine.submit(request)
    async with asyncio.timeout(60):
        async for event in engine.events():
            if isinstance(event, EngineStep):
                for output in event.outputs:
                    if output.token_ids:
                        return output
    raise AssertionError("the engine ended")


async def test_a_kv_cache_goes_to_a_worker_with_a_certificate_only(certificates: ClusterCertificates) -> None:
    def desk(worker_id: str) -> WorkerDeskTls:
        return WorkerDeskTls(WatchedCredentials(certificates.files(certificates.issue(PeerRole.WORKER, worker_id))))

    async with (
        started("prefill-0", desk("prefill-0")) as prefill,
        started("decode-0", desk("decode-0")) as decode,
        started("decode-1", None) as stranger,
    ):
        for engine, pulls in ((stranger, False), (decode, True)):
            name = f"pulled: {pulls}"
            first = await first_output(prefill, EngineRequest(name, PROMPT, 0, SAMPLING, export_kv=True))
            assert first.kv is not None
            tokens = (*PROMPT, *first.token_ids)
            rest = await first_output(engine, EngineRequest(name, tokens, 1, SAMPLING, kv_source=first.kv))
            assert rest.timings is not None
            assert (rest.timings.kv_pull is not None) is pulls
            assert bool(rest.timings.kv_recompute_reason) is not pulls
