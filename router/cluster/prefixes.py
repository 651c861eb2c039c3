"""Which workers have the beginning of a prompt in their prefix cache, as far as the router can know.

Engines cache whole blocks of what they computed and forget the oldest when memory is short. The router remembers what
each worker computed, less than it can hold, and believes a worker only after it has reported a hit; a report of less
than was believed wipes what is remembered of it. A wrong belief makes a promise risky, a missing one only dear.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

TRUSTED_SHARE = 0.5
"""Of a worker's KV blocks: so many may be cached besides what is in use."""
MOST_WORKERS = 4
"""Workers named for one prompt."""
DIGESTED_PROMPTS = 64
"""A prompt is asked about in every round until it has a verdict, when it is sent and when it is computed: digests of so
many of the latest are kept."""


def block_digests(prompt: Sequence[int], block_tokens: int) -> tuple[bytes, ...]:
    """One digest for each full block of a prompt, of the block and everything before it; the last token stays out,
    because an engine always computes it.
    """
    return _digests(tuple(prompt), block_tokens)


@lru_cache(maxsize=DIGESTED_PROMPTS)
def _digests(prompt: tuple[int, ...], block_tokens: int) -> tuple[bytes, ...]:
    digests = []
    running = blake2b(digest_size=16)
    for end in range(block_tokens, len(prompt), block_tokens):
        running.update(array("q", prompt[end - block_tokens : end]).tobytes())
        digests.append(running.copy().digest())
    return tuple(digests)


@dataclass(slots=True)
class _Known:
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    """The latest last."""
    believed: bool = False


@dataclass(slots=True)
class PrefixIndex:
    """Bounded by the workers' own memory; owned by one event loop."""

    _workers: dict[str, _Known] = field(default_factory=dict)
    _holders: dict[bytes, dict[str, None]] = field(default_factory=dict)

    def holders(self, prompt: Sequence[int], block_tokens: int) -> tuple[tuple[str, int], ...]:
        """Workers that have most of a prompt, and how many tokens of it."""
        found: dict[str, int] = {}
        digests = block_digests(prompt, block_tokens) if self._holders else ()
        for index in range(len(digests) - 1, -1, -1):
            for worker_id in self._holders.get(digests[index], ()):
                if self._workers[worker_id].believed:
                    found.setdefault(worker_id, (index + 1) * block_tokens)
            if len(found) >= MOST_WORKERS:
                break
        return tuple(found.items())[:MOST_WORKERS]

    def computed(
        self, worker_id: str, prompt: Sequence[int], block_tokens: int, kv_blocks: int, believed: int, cached: int
    ) -> None:
        """A worker has computed a prompt.

        Args:
            kv_blocks: that it can hold.
            believed: tokens that it was thought to have cached.
            cached: tokens that it did find in its cache.
        """
        if cached < believed:
            self.forget(worker_id)
        known = self._workers.setdefault(worker_id, _Known())
        known.believed = cached > 0 or (known.believed and cached >= believed)
        for digest in block_digests(prompt, block_tokens):
            known.blocks[digest] = None
            known.blocks.move_to_end(digest)
            self._holders.setdefault(digest, {})[worker_id] = None
        while len(known.blocks) > TRUSTED_SHARE * kv_blocks:
            digest, _ = known.blocks.popitem(last=False)
            self._drop(digest, worker_id)

    def forget(self, worker_id: str) -> None:
        """The worker is gone, or its cache is not what it was thought to be."""
        known = self._workers.pop(worker_id, None)
        for digest in known.blocks if known is not None else ():
            self._drop(digest, worker_id)

    def _drop(self, digest: bytes, worker_id: str) -> None:
        holders = self._holders.get(digest)
        if holders is not None:
            holders.pop(worker_id, None)
            if not holders:
                del self._holders[digest]
