"""The account of an engine's KV blocks."""

from __future__ import annotations


class BlockAccountError(Exception):
    """The account of KV blocks would no longer add up: a defect of this engine."""


class KvBlocks:
    """The account of KV blocks: each is free, held by a request, or leased, and the three add up to `total`."""

    __slots__ = ("held", "leased", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self.leased = 0

    @property
    def used(self) -> int:
        return self.held + self.leased

    @property
    def free(self) -> int:
        return self.total - self.used

    def hold(self, blocks: int) -> None:
        """Move blocks from free to held by a request; a negative number gives blocks back."""
        self._move(held=blocks, leased=0)

    def lease(self, blocks: int) -> None:
        """Move blocks from held by a request to leased."""
        self._move(held=-blocks, leased=blocks)

    def end_lease(self, blocks: int) -> None:
        """Move blocks from leased to free."""
        self._move(held=0, leased=-blocks)

    def _move(self, held: int, leased: int) -> None:
        self.held += held
        self.leased += leased
        if self.held < 0 or self.leased < 0 or self.free < 0:
            raise BlockAccountError(f"held {self.held}, leased {self.leased}, of {self.total} KV blocks")
