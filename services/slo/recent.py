"""A bounded table that keeps the entries used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """A mapping of at most `limit` entries, which forgets the one that was not used for longest."""

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        """
        Raises:
            ValueError: limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be positive; got {limit}")
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        """Return an entry and count it as used; None if there is none."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Return an entry and count it as used; make it if there is none, and forget another if the table is full."""
        value = self.get(key)
        if value is None:
            value = self._entries[key] = make()
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        return value
