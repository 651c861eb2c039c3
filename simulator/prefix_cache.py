"""The prefix cache of a simulated worker: beginnings of prompts whose KV cache it still has."""

from __future__ import annotations

from collections import OrderedDict

from simulator.request import OfferedRequest


class PrefixCache:
    """A cache of prompt blocks that keeps those used last, in memory that no request holds.

    Keeping a block costs nothing: what a request finds is copied into blocks of its own.
    """

    __slots__ = ("_blocks", "_tokens")

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self._tokens = 0

    def peek(self, offered: OfferedRequest) -> int:
        """Return how many tokens of a prompt are cached; never all, because the engine computes the last one itself."""
        if not self._blocks:
            return 0
        tokens = 0
        for block in offered.prefix:
            if block not in self._blocks:
                break
            tokens += offered.prefix_block_tokens
        return min(tokens, offered.prompt_tokens - 1)

    def use(self, offered: OfferedRequest) -> int:
        """Return the same as `peek`, and count these blocks as used now."""
        tokens = self.peek(offered)
        for block in offered.prefix[: tokens // offered.prefix_block_tokens]:
            self._blocks.move_to_end(block)
        return tokens

    def keep(self, offered: OfferedRequest, free_tokens: int) -> None:
        """Keep the blocks of a prompt that was computed here, in a cache of at most `free_tokens` tokens."""
        for block in offered.prefix:
            if block not in self._blocks:
                self._tokens += offered.prefix_block_tokens
            self._blocks[block] = offered.prefix_block_tokens
            self._blocks.move_to_end(block)
        self.shrink(free_tokens)

    def shrink(self, free_tokens: int) -> None:
        """Drop the blocks that were not used for longest until no more than `free_tokens` tokens are kept."""
        while self._blocks and self._tokens > free_tokens:
            _, tokens = self._blocks.popitem(last=False)
            self._tokens -= tokens

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self._tokens = 0
