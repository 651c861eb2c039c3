"""A KV cache as two engines speak of it: the handle that its computing engine gives out, and how its lease ends."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from services.engine.kv.compatibility import Compatibility
from services.slo.kv_blocks import blocks_for


class LeaseOutcome(enum.Enum):
    """How the lease on an exported KV cache ended; its blocks are free afterwards."""

    PULLED = "pulled"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class KvHandle:
    """A finished prefill's KV cache, held under a lease by the engine that computed it."""

    lease_id: str
    """Name of the lease, unique for ever. A handle is good for one pull."""
    worker_id: str
    engine_epoch: str
    lease_remaining_s: float
    """Seconds of validity left at the moment this value is handed over. A duration: hosts need not agree on the
    clock."""
    tokens: int
    """Number of tokens whose KV is held, from the beginning of the context."""
    kv_bytes: int
    """Number of bytes to be moved."""
    compatibility: Compatibility
    transfer_params_json: str
    """Where the KV cache can be claimed; opaque to all but the engines."""
    secret: str = field(repr=False)
    """Proof for the exporter that the claimant was given this handle. It goes from there through the router to the
    claimant, and to nobody else: it is never logged, stored or shown."""

    @property
    def blocks(self) -> int:
        """Number of KV blocks that the lease holds."""
        return blocks_for(self.tokens, self.compatibility.block_tokens)


@dataclass(frozen=True, slots=True)
class KvPull:
    """One pull of a KV cache, as seen by the engine that pulled."""

    kv_bytes: int
    """Number of bytes that came over the fabric."""
    transfer_s: float
    """Seconds that reading them took."""
