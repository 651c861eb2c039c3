"""The decisions whether a KV cache of another engine may be used; each reason means that it is computed again instead.

Every case here would otherwise end in wrong text, and no backend reports it as an error.
"""

from __future__ import annotations

import math
from typing import Protocol

from services.engine.kv.compatibility import Compatibility, mismatches
from services.engine.kv.handle import KvHandle
from services.shown import clipped


class KvTerms(Protocol):
    """What an exporter states of a KV cache when it grants a claim."""

    @property
    def tokens(self) -> int:
        """Number of tokens whose KV is held, from the beginning of the context."""
        ...

    @property
    def prefix_digest(self) -> str:
        """Digest of those tokens."""
        ...


def unusable_handle(
    handle: KvHandle, ours: Compatibility, context_tokens: int, *, age_s: float = 0.0, needed_s: float = 0.0
) -> str:
    """Return why a KV cache must not be pulled with this handle; empty if it may be.

    Args:
        ours: facts of the engine that would pull.
        context_tokens: number of tokens that the request has so far.
        age_s: seconds since the handle was received, which its lease has run on.
        needed_s: seconds that the pull takes at least, with the margin that it must keep from the end of its lease.
    """
    for name in ("lease_id", "engine_epoch", "transfer_params_json", "secret"):
        if not getattr(handle, name):
            return f"the handle has no {name}"
    if not 0 < handle.tokens <= context_tokens:
        return f"the handle covers {handle.tokens} tokens of a request of {context_tokens}"
    if handle.kv_bytes < 0:
        return f"the handle is for {handle.kv_bytes} bytes"
    remaining_s = handle.lease_remaining_s - age_s
    if not (math.isfinite(remaining_s) and remaining_s > needed_s):
        return f"the lease has {remaining_s:.3f} s left, and more than {needed_s:.3f} s are needed"
    differing = mismatches(ours, handle.compatibility)
    return f"the engines do not match: {'; '.join(differing)}" if differing else ""


def foreign_handle(handle: KvHandle, worker_id: str, engine_epoch: str, address_json: str) -> str:
    """Return why a handle is not one that the worker which reported it may give out; empty if it is.

    Without this a worker could send the claimant of a KV cache to any address it likes.

    Args:
        worker_id: name of the worker that reported the handle.
        engine_epoch: start of its engine, as the worker has described itself.
        address_json: where its leases are claimed, as the worker has described itself.
    """
    if handle.worker_id != worker_id:
        return f"it names worker {clipped(handle.worker_id)!r}"
    if handle.engine_epoch != engine_epoch:
        return f"it names engine {clipped(handle.engine_epoch)!r}"
    if not address_json:
        return "the worker does not say where its leases are claimed"
    if handle.transfer_params_json != address_json:
        return f"it is to be claimed at {clipped(handle.transfer_params_json)!r}"
    return ""


def unusable_terms(terms: KvTerms, handle: KvHandle, digest: str) -> str:
    """Return why the KV cache that was claimed must not be read; empty if it may be.

    Args:
        digest: digest of as many of the request's own tokens as the handle covers.
    """
    if terms.tokens != handle.tokens:
        return f"the lease covers {terms.tokens} tokens, not {handle.tokens} as the handle says"
    return "" if terms.prefix_digest == digest else "the KV cache belongs to another prompt"


def pull_deadline_s(received_s: float, lease_remaining_s: float, margin_s: float) -> float:
    """Return when a pull must have ended, on the clock that `received_s` was read from.

    Args:
        received_s: time at which the handle or grant was received; for a grant the time of the question, since the
            way there and back can only shorten the lease.
        lease_remaining_s: seconds that the lease had left then.
        margin_s: seconds before the end of a lease that are not relied on.
    """
    return received_s + lease_remaining_s - margin_s


def too_late(deadline_s: float, now_s: float) -> bool:
    """Return whether a KV cache that is read at `now_s` may have been freed, and be something else by now."""
    return now_s >= deadline_s
