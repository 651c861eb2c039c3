"""The facts in which two engines must agree before a KV cache may pass between them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Compatibility:
    """The facts that must all be equal in two engines before a KV cache may pass between them.

    The handshakes of NIXL and vLLM check some of it but not all: a KV cache of another block size is read without an
    error and gives wrong text.
    """

    model_fingerprint: str
    """Digest of the model's configuration and weights."""
    dtype: str
    """Type of weights and activations."""
    kv_cache_dtype: str
    """Type of the values in the KV cache."""
    block_tokens: int
    """Number of tokens in a KV block."""
    tensor_parallel: int
    """Number of devices that share one copy of the model."""
    kv_layout: str
    """Order of the dimensions in a KV block, and what else lies in it."""
    engine: str
    """Engine and version, transfer protocol and version."""


def mismatches(ours: Compatibility, theirs: Compatibility) -> list[str]:
    """Return each differing fact as `name: ours != theirs`; empty if a KV cache may pass."""
    return [
        f"{fact.name}: {getattr(ours, fact.name)} != {getattr(theirs, fact.name)}"
        for fact in fields(Compatibility)
        if getattr(ours, fact.name) != getattr(theirs, fact.name)
    ]


def foreign_model(ours: Compatibility, theirs: Compatibility) -> str:
    """Return how the models of two engines differ; empty if they are the same model.

    An engine cannot continue an output that another model began, not even by computing the prompt again.
    """
    if ours.model_fingerprint == theirs.model_fingerprint:
        return ""
    return f"model_fingerprint: {ours.model_fingerprint} != {theirs.model_fingerprint}"
