"""The backend by which a vLLM engine hands KV caches over. No other module of the front end names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.engine.kv.claims import Claim
from services.engine.kv.desk_tls import DeskTls
from services.engine.kv.hand_over import KvEndpoint, KvHandOver
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.kv.leases import Lease
from services.engine.vllm.frontend.nixl_backend import (
    KV_LAYOUT,
    NixlBackend,
    NixlOffer,
    connector_config,
    environment,
    transfer_protocol,
)
from services.engine.vllm.shared.nixl_terms import NixlTerms

VllmHandOver = KvHandOver[NixlOffer, NixlTerms]
"""An engine's part in handing over KV caches."""
VllmLease = Lease[NixlOffer]
"""A lease on a KV cache that EngineCore holds."""
VllmClaim = Claim[NixlTerms]
"""A claim of a KV cache that EngineCore pulls; its terms say what EngineCore is told."""


def make_hand_over(
    endpoint: KvEndpoint, free: Callable[[VllmLease, LeaseOutcome], None], tls: DeskTls | None = None
) -> VllmHandOver:
    """Return an engine's part in handing over KV caches.

    Args:
        free: has EngineCore free the blocks of a lease that ended here.
        tls: encrypts claims; None: they are in the clear.
    """
    backend = NixlBackend(endpoint.compatibility.block_tokens)
    # EngineCore frees a lease's blocks when its time is over, and reports it.
    return KvHandOver(endpoint, backend, backend, free, expires_leases=False, tls=tls)


def export(kv: VllmHandOver, core_id: str, params: Mapping[str, Any]) -> KvHandle:
    """Lease out the KV cache that EngineCore describes in its transfer parameters.

    Raises:
        MalformedTransferError: the parameters are not as expected.
    """
    offer = NixlOffer.from_vllm(params)
    return kv.export(core_id, offer, offer.tokens, offer.until_s)


__all__ = [
    "KV_LAYOUT",
    "VllmClaim",
    "VllmHandOver",
    "VllmLease",
    "connector_config",
    "environment",
    "export",
    "make_hand_over",
    "transfer_protocol",
]
