"""Which engines may hand a KV cache to each other."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Compatibility:
    """A KV cache may pass between two engines only if all of this is equal.

    NIXL and vLLM check some of it in their handshake but not all: a different block size is read without an error and
    gives wrong text.
    """

    model_fingerprint: str
    """Digest of the model's configuration and weights."""
    dtype: str
    kv_cache_dtype: str
    block_tokens: int
    tensor_parallel: int
    kv_layout: str
    engine: str
    """Engine and version, transfer protocol and version."""


def mismatches(ours: Compatibility, theirs: Compatibility) -> list[str]:
    """Each differing fact as `name: ours != theirs`; empty if a KV cache may pass."""
    return [
        f"{fact.name}: {getattr(ours, fact.name)} != {getattr(theirs, fact.name)}"
        for fact in fields(Compatibility)
        if getattr(ours, fact.name) != getattr(theirs, fact.name)
    ]
