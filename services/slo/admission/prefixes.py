"""Which workers have the beginning of a prompt in their prefix cache, as far as that can be known from outside.

Engines cache whole blocks of what they computed and forget the oldest when memory is short. What each worker computed
is remembered here, less than it can hold, and a worker is believed only after it has reported a hit; a report of less
than was believed wipes what is remembered of it. A wrong belief makes a promise risky, a missing one only costly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from services.slo.admission.requests import PromptBlocks

TRUSTED_SHARE = 0.5
"""Share of a worker's KV blocks that may hold cached prompts besides those in use."""
MOST_WORKERS = 4
"""Workers named for one prompt."""


@dataclass(slots=True)
class _Known:
    """The blocks of prompts that one worker has computed."""

    blocks: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)
    """Identities of blocks, the latest last."""
    believed: bool = False


@dataclass(slots=True)
class PrefixIndex:
    """Remembers which worker computed which blocks. Bounded by the workers' own memory; owned by one event loop."""

    _workers: dict[str, _Known] = field(default_factory=dict)
    _holders: dict[Hashable, dict[str, None]] = field(default_factory=dict)

    def holders(self, blocks: PromptBlocks, block_tokens: int) -> tuple[tuple[str, int], ...]:
        """Return the workers that have most of a prompt cached, each with the number of tokens it has."""
        found: dict[str, int] = {}
        names = blocks.of(block_tokens) if self._holders else ()
        for index in range(len(names) - 1, -1, -1):
            for worker_id in self._holders.get(names[index], ()):
                if self._workers[worker_id].believed:
                    found.setdefault(worker_id, (index + 1) * block_tokens)
            if len(found) >= MOST_WORKERS:
                break
        return tuple(found.items())[:MOST_WORKERS]

    def computed(
        self,
        worker_id: str,
        blocks: PromptBlocks,
        block_tokens: int,
        kv_blocks: int,
        believed_tokens: int,
        cached_tokens: int,
    ) -> None:
        """Note that a worker has computed a prompt.

        Args:
            kv_blocks: blocks that its KV cache has in all.
            believed_tokens: tokens that it was thought to have cached.
            cached_tokens: tokens that it did find in its cache.
        """
        if cached_tokens < believed_tokens:
            self.forget(worker_id)
        known = self._workers.setdefault(worker_id, _Known())
        known.believed = cached_tokens > 0 or (known.believed and cached_tokens >= believed_tokens)
        for name in blocks.of(block_tokens):
            known.blocks[name] = None
            known.blocks.move_to_end(name)
            self._holders.setdefault(name, {})[worker_id] = None
        while len(known.blocks) > TRUSTED_SHARE * kv_blocks:
            name, _ = known.blocks.popitem(last=False)
            self._drop(name, worker_id)

    def forget(self, worker_id: str) -> None:
        """Drop what is remembered of a worker: it is gone, or its cache is not what it was thought to be."""
        known = self._workers.pop(worker_id, None)
        for name in known.blocks if known is not None else ():
            self._drop(name, worker_id)

    def _drop(self, name: Hashable, worker_id: str) -> None:
        holders = self._holders.get(name)
        if holders is not None:
            holders.pop(worker_id, None)
            if not holders:
                del self._holders[name]
