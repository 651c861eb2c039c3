"""Which beginnings of prompts a worker still has the KV cache of."""

from __future__ import annotations

from collections import OrderedDict

from simulator.request import OfferedRequest


class PrefixCache:
    """Blocks that were used last stay, in memory that nobody else needs. They cost nothing: what a request finds is
    copied into its own blocks.
    """

    __slots__ = ("_blocks", "_tokens")

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self._tokens = 0

    def peek(self, offered: OfferedRequest) -> int:
        """Tokens of a prompt that are here; never all of it, because an engine computes the last one itself."""
        if not self._blocks:
            return 0
        tokens = 0
        for block in offered.prefix:
            if block not in self._blocks:
                break
            tokens += offered.prefix_block_tokens
        return min(tokens, offered.prompt_tokens - 1)

    def use(self, offered: OfferedRequest) -> int:
        """The same, and they count as used."""
        tokens = self.peek(offered)
        for block in offered.prefix[: tokens // offered.prefix_block_tokens]:
            self._blocks.move_to_end(block)
        return tokens

    def keep(self, offered: OfferedRequest, free_tokens: int) -> None:
        """The prompt was computed here; the memory left over is so large."""
        for block in offered.prefix:
            if block not in self._blocks:
                self._tokens += offered.prefix_block_tokens
            self._blocks[block] = offered.prefix_block_tokens
            self._blocks.move_to_end(block)
        self.shrink(free_tokens)

    def shrink(self, free_tokens: int) -> None:
        while self._blocks and self._tokens > free_tokens:
            _, tokens = self._blocks.popitem(last=False)
            self._tokens -= tokens

    def clear(self) -> None:
        self._blocks.clear()
        self._tokens = 0
