"""Engines that hand KV caches over with each of the backends there are, and compute nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from services.engine.emulated.active_request import Export
from services.engine.emulated.kv_backend import EmulatedKvBackend
from services.engine.emulated.link import Link
from services.engine.emulated.tokens import context_digest
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.hand_over import KvEndpoint, KvHandOver
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.kv.leases import Lease
from services.engine.vllm.frontend.nixl_backend import NixlBackend, NixlOffer
from services.engine.vllm.shared.nixl_terms import DIGEST_KEY, LEASE_DEADLINE_KEY, prefix_digest
from tests.support.virtual_time import elapsed_s

BLOCK_TOKENS, BYTES_PER_TOKEN = 16, 1000
COMPATIBILITY = Compatibility("f", "bfloat16", "bfloat16", BLOCK_TOKENS, 1, "layout", "engine 1")
PROMPT = tuple(range(100, 150))
"""Fills four blocks, the last in part."""
TRANSFER_S = 0.074
"""Seconds in which the emulated link carries four blocks."""
MARGIN_S = 0.5


@dataclass(frozen=True)
class Backend:
    """One way to move bytes, and how a test makes offers for it."""

    name: str
    make: Callable[[], Any]
    offer: Callable[[tuple[int, ...], float], Any]
    expires_leases: bool

    @property
    def one_sided(self) -> bool:
        return bool(self.make().one_sided)


def nixl_params(token_ids: tuple[int, ...], until_s: float) -> dict[str, Any]:
    """Transfer parameters as an exporting vLLM makes them."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [list(range(1, 2 + (len(token_ids) - 1) // BLOCK_TOKENS))],
        "remote_engine_id": "epoch",
        "remote_request_id": "epoch-1",
        "remote_host": "127.0.0.1",
        "remote_port": 5600,
        "tp_size": 1,
        "remote_num_tokens": len(token_ids),
        LEASE_DEADLINE_KEY: until_s,
        DIGEST_KEY: prefix_digest(token_ids),
    }


def emulated_backend() -> EmulatedKvBackend:
    return EmulatedKvBackend(Link(latency_s=0.01, bytes_per_s=1e6), BLOCK_TOKENS * BYTES_PER_TOKEN)


EMULATED = Backend(
    "emulated",
    emulated_backend,
    lambda token_ids, until_s: Export(len(token_ids), 4, context_digest(token_ids)),
    expires_leases=True,
)
NIXL = Backend(
    "nixl",
    lambda: NixlBackend(BLOCK_TOKENS),
    lambda token_ids, until_s: NixlOffer.from_vllm(nixl_params(token_ids, until_s)),
    expires_leases=False,
)
BACKENDS = (EMULATED, NIXL)


@dataclass
class TestEngine:
    """An engine's part in handing over, and what became of its leases: outcome and seconds since the beginning."""

    __test__ = False

    backend: Backend
    worker_id: str
    tls: DeskTls | None = None
    freed: dict[str, tuple[LeaseOutcome, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        endpoint = KvEndpoint(self.worker_id, "epoch", COMPATIBILITY, BYTES_PER_TOKEN, MARGIN_S)
        self.moves: Any = self.backend.make()
        self.kv: KvHandOver[Any, Any] = KvHandOver(
            endpoint, self.moves, self.moves, self._free, expires_leases=self.backend.expires_leases, tls=self.tls
        )

    def export(self, lease_id: str = "a", lease_s: float = 10.0, token_ids: tuple[int, ...] = PROMPT) -> KvHandle:
        until_s = now_s() + lease_s
        return self.kv.export(lease_id, self.backend.offer(token_ids, until_s), len(token_ids), until_s)

    def _free(self, lease: Lease[Any], outcome: LeaseOutcome) -> None:
        assert lease.lease_id not in self.freed, "blocks freed twice"
        self.freed[lease.lease_id] = (outcome, round(elapsed_s(), 6))


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let what is on its way between two sockets arrive: the loop looks for it before it moves its clock on so far."""
    await asyncio.sleep(0.6)


@contextlib.asynccontextmanager
async def two_engines(backend: Backend) -> AsyncIterator[tuple[TestEngine, TestEngine]]:
    """An exporter and a puller that answer claims."""
    engines = TestEngine(backend, "prefill-0"), TestEngine(backend, "decode-0")
    for engine in engines:
        await engine.kv.start("127.0.0.1")
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.kv.stop()
            assert engine.kv._server._cut_off == {}, "claims that are over are forgotten"
