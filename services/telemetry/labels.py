"""Label values that clients choose."""

from __future__ import annotations

OTHER = "other"
NONE = "none"
MAX_CHARACTERS = 128


class LabelCap:
    """Keeps the first so many values of one label apart; whatever comes later is `other`.

    A client must not be able to fill the memory of whoever scrapes us by making names up.
    """

    def __init__(self, limit: int, *, known: tuple[str, ...] = ()) -> None:
        """
        Args:
            known: values that are there from the start, whatever clients send.
        """
        self._limit = limit
        self._seen = {value: value for value in known}

    def value(self, asked: str) -> str:
        """What to write for it; `none` for nothing."""
        seen = self._seen.get(asked)
        if seen is not None:
            return seen
        if not asked:
            return NONE
        if len(self._seen) >= self._limit:
            return OTHER
        return self._seen.setdefault(asked, asked[:MAX_CHARACTERS])
