"""The transfer parameters with which vLLM's NIXL connectors hand over a KV cache, and what is added to them."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEADLINE_KEY = "slos_pull_deadline_s"
"""Key on the pulling side: when the pull must have ended, on that host's monotonic clock."""
DIGEST_KEY = "slos_prefix_digest"
"""Key on both sides: digest of the token ids whose KV is held."""
LEASE_DEADLINE_KEY = "slos_lease_deadline_s"
"""Key on the exporting side: end of the lease, on that host's monotonic clock."""


class MalformedTransferError(ValueError):
    """Transfer parameters are not what an exporter of ours writes."""


def prefix_digest(token_ids: Sequence[int]) -> str:
    """Return the digest of token ids: a KV cache is only good for the very tokens that it was computed from."""
    return hashlib.sha256(array.array("q", token_ids).tobytes()).hexdigest()


MAX_COUNT = 2**31
"""Bound of every number in transfer parameters: EngineCore keeps them in 32 bits."""


@dataclass(frozen=True, slots=True)
class NixlTerms:
    """What the pulling side has to know of an exported KV cache."""

    engine_id: str
    request_id: str
    """Name of the request in the exporting EngineCore."""
    host: str
    port: int
    """Where the exporting EngineCore answers NIXL's handshake."""
    tensor_parallel: int
    block_ids: tuple[int, ...]
    """Blocks in the exporting engine, in the order of the tokens."""
    tokens: int
    prefix_digest: str

    @classmethod
    def from_exporter(cls, params: Mapping[str, Any]) -> NixlTerms:
        """Read the transfer parameters that an exporting vLLM has made.

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
        if not all(type(count) is int and 0 <= count < MAX_COUNT for count in counts):
            raise MalformedTransferError("a port, size, count or block id is not a whole number below 2^31")
        return terms

    def to_vllm(self, deadline_s: float) -> dict[str, Any]:
        """Return the transfer parameters for a pulling vLLM; `deadline_s` is on this host's monotonic clock."""
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
