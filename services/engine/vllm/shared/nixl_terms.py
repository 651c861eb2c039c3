"""The terms of a KV pull, and when it must not happen."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEADLINE_KEY = "slos_pull_deadline_s"
"""In vLLM's transfer parameters on the pulling side: when the pull must have ended, on this host's monotonic clock."""
DIGEST_KEY = "slos_prefix_digest"
"""In vLLM's transfer parameters: digest of the token ids whose KV is held."""
LEASE_DEADLINE_KEY = "slos_lease_deadline_s"
"""In vLLM's transfer parameters on the producing side: end of the lease, on that host's monotonic clock."""


class MalformedTransferError(ValueError):
    """Transfer parameters are not what a producer of ours writes."""


def prefix_digest(token_ids: Sequence[int]) -> str:
    """Digest of token ids: a KV cache is only good for the very tokens it was computed from."""
    return hashlib.sha256(array.array("q", token_ids).tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class PullTerms:
    """What the pulling side has to know of the producer's KV cache."""

    engine_id: str
    request_id: str
    host: str
    port: int
    tensor_parallel: int
    block_ids: tuple[int, ...]
    tokens: int
    prefix_digest: str

    @classmethod
    def from_producer(cls, params: Mapping[str, Any]) -> PullTerms:
        """Terms from the transfer parameters of vLLM's producer.

        Raises:
            MalformedTransferError: a field is missing or of the wrong type, or the cache has more than one block list.
        """
        try:
            groups = params["remote_block_ids"]
            terms = cls(
                engine_id=params["remote_engine_id"],
                request_id=params["remote_request_id"],
                host=params["remote_host"],
                port=params["remote_port"],
                tensor_parallel=params["tp_size"],
                block_ids=tuple(groups[0]),
                tokens=params["remote_num_tokens"],
                prefix_digest=params[DIGEST_KEY],
            )
        except (KeyError, IndexError, TypeError) as error:
            raise MalformedTransferError(f"transfer parameters lack {error}") from error
        if len(groups) != 1:
            raise MalformedTransferError(f"{len(groups)} KV cache groups instead of one")
        texts = (terms.engine_id, terms.request_id, terms.host, terms.prefix_digest)
        counts = (terms.port, terms.tensor_parallel, terms.tokens, *terms.block_ids)
        if not all(type(text) is str for text in texts):
            raise MalformedTransferError("an id, the host or the digest is not text")
        if not all(type(count) is int and count >= 0 for count in counts):
            raise MalformedTransferError("a port, size, count or block id is not a whole number")
        return terms

    def to_vllm(self, deadline_s: float) -> dict[str, Any]:
        """Transfer parameters for vLLM's consumer; `deadline_s` is on this host's monotonic clock."""
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self.engine_id,
            "remote_request_id": self.request_id,
            "remote_host": self.host,
            "remote_port": self.port,
            "tp_size": self.tensor_parallel,
            "remote_block_ids": [list(self.block_ids)],
            "remote_num_tokens": self.tokens,
            DIGEST_KEY: self.prefix_digest,
            DEADLINE_KEY: deadline_s,
        }


def refusal(params: Mapping[str, Any], prompt_token_ids: Sequence[int], block_tokens: int, now_s: float) -> str | None:
    """Why this KV cache must not be pulled for this prompt, or None if it may be.

    Everything here would otherwise end in wrong text or, for a short block list, in a dead engine.
    """
    try:
        terms = PullTerms.from_producer(params)
        deadline_s = float(params[DEADLINE_KEY])
    except (MalformedTransferError, KeyError, TypeError, ValueError) as error:
        return f"malformed transfer parameters: {error}"
    if now_s >= deadline_s:
        return f"the lease ran out {now_s - deadline_s:.3f} s before the pull could start"
    if not 0 < terms.tokens <= len(prompt_token_ids):
        return f"the KV cache covers {terms.tokens} tokens of a prompt of {len(prompt_token_ids)}"
    blocks = -(-terms.tokens // block_tokens)
    if len(terms.block_ids) != blocks:
        return f"{len(terms.block_ids)} KV blocks offered for {terms.tokens} tokens, which take {blocks}"
    if prefix_digest(prompt_token_ids[: terms.tokens]) != terms.prefix_digest:
        return "the KV cache belongs to another prompt"
    return None
