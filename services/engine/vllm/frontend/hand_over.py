"""KV caches on their way out of this engine, and into it."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from services.engine.kv.compatibility import mismatches
from services.engine.kv.handle import KvHandle
from services.engine.protocol import EngineFacts
from services.engine.vllm.frontend.lease_desk import Claim, ClaimRefusedError, KvLeaseServer, claim
from services.engine.vllm.shared.nixl_terms import LEASE_DEADLINE_KEY, PullTerms

_CLAIM_TIMEOUT_S = 2.0


class HandOver:
    """The front-end's part in moving KV caches: handles out, claims in.

    Args:
        facts: of this engine; a KV cache from an engine with another compatibility is never pulled.
        host: where other engines reach this one.
        margin_s: part of a lease's end that is not relied on.
        release_in_core: frees the blocks of a lease.
    """

    def __init__(
        self,
        facts: EngineFacts,
        worker_id: str,
        host: str,
        margin_s: float,
        release_in_core: Callable[[str], Awaitable[None]],
    ) -> None:
        self._facts = facts
        self._worker_id = worker_id
        self._margin_s = margin_s
        self._desk = KvLeaseServer(host, margin_s, release_in_core)

    async def start(self) -> None:
        await self._desk.start()

    async def stop(self) -> None:
        await self._desk.stop()

    def export(self, lease_id: str, params: Mapping[str, Any]) -> KvHandle:
        """A handle for the KV cache that vLLM holds with these transfer parameters.

        Raises:
            MalformedTransferError: vLLM's parameters are not as expected.
        """
        terms = PullTerms.from_producer(params)
        deadline_s = float(params[LEASE_DEADLINE_KEY])
        self._desk.open(lease_id, params, deadline_s)
        host, port = self._desk.address
        compatibility = self._facts.compatibility
        return KvHandle(
            lease_id=lease_id,
            worker_id=self._worker_id,
            engine_epoch=self._facts.engine_epoch,
            lease_remaining_s=max(0.0, deadline_s - time.monotonic()),
            tokens=terms.tokens,
            kv_bytes=len(terms.block_ids) * compatibility.block_tokens * self._facts.kv_bytes_per_token,
            compatibility=compatibility,
            transfer_params_json=json.dumps({"host": host, "port": port}),
        )

    def closed(self, lease_id: str) -> None:
        """The lease has ended in EngineCore."""
        self._desk.close(lease_id)

    async def release(self, lease_id: str) -> None:
        await self._desk.release(lease_id)

    async def claim(self, source: KvHandle) -> tuple[Claim, PullTerms, float]:
        """Claim a KV cache: the claim, the terms, and when the pull must have ended on this host's monotonic clock.

        Raises:
            ClaimRefusedError: it must not be pulled; the message says why.
        """
        differing = mismatches(self._facts.compatibility, source.compatibility)
        if differing:
            raise ClaimRefusedError("the KV cache does not fit: " + "; ".join(differing))
        if not source.lease_remaining_s > self._margin_s:
            raise ClaimRefusedError(f"the lease has {source.lease_remaining_s:.3f} s left")
        host, port = _address(source)
        known_at_s = time.monotonic()
        granted = await claim(host, port, source.lease_id, _CLAIM_TIMEOUT_S)
        try:
            terms = PullTerms.from_producer(granted.terms)
        except ValueError as error:
            granted.give_back()
            raise ClaimRefusedError(f"the producer's terms make no sense: {error}") from error
        # The handle's own duration was restamped at every hop and holds too.
        end_s = min(granted.deadline_s, known_at_s + source.lease_remaining_s)
        return granted, terms, end_s - self._margin_s


def _address(source: KvHandle) -> tuple[str, int]:
    try:
        address = json.loads(source.transfer_params_json)
        host, port = address["host"], address["port"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClaimRefusedError(f"the KV handle does not say whom to ask for it: {error}") from error
    if type(host) is not str or type(port) is not int or not 0 < port < 65536:
        raise ClaimRefusedError("the KV handle does not say whom to ask for it")
    return host, port
