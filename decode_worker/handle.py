"""Whether a KV handle may be pulled."""

from __future__ import annotations

from services.engine.kv.compatibility import mismatches
from services.engine.kv.handle import KvHandle
from services.engine.protocol import EngineFacts, EngineRequest


def foreign_model(handle: KvHandle, facts: EngineFacts) -> str:
    """Not empty if the handle's engine runs another model: its first token is not ours to continue from."""
    ours, theirs = facts.compatibility.model_fingerprint, handle.compatibility.model_fingerprint
    return "" if ours == theirs else f"model_fingerprint: {ours} != {theirs}"


def unusable(request: EngineRequest, handle: KvHandle, facts: EngineFacts) -> str:
    """Why the KV cache has to be computed here instead; empty if it may be pulled."""
    for name in ("lease_id", "engine_epoch", "transfer_params_json"):
        if not getattr(handle, name):
            return f"the handle has no {name}"
    if not 0 < handle.tokens <= len(request.token_ids):
        return f"the handle covers {handle.tokens} tokens of a request of {len(request.token_ids)}"
    if handle.lease_remaining_s <= 0:
        return "the lease has expired"
    differing = mismatches(facts.compatibility, handle.compatibility)
    if differing:
        return f"the KV caches do not match: {'; '.join(differing)}"
    return ""
