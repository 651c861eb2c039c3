"""A limit to the label values that clients can choose."""

from __future__ import annotations

OTHER = "other"
NONE = "none"
MAX_CHARACTERS = 128
"""Characters of a label value that are kept. Longer than any sensible name, short enough to be harmless."""


class LabelCap:
    """Keeps the first values of one label apart, up to a limit, and maps all later values to `other`.

    Without it, a client that makes names up could fill the memory of this process and of those that scrape it.
    """

    def __init__(self, limit: int, *, known: tuple[str, ...] = ()) -> None:
        """
        Args:
            limit: number of values that are kept apart, `known` included.
            known: values that are kept apart from the start, whatever clients send.
        """
        self._limit = limit
        self._seen = {value: value for value in known}

    def value(self, asked: str) -> str:
        """Return the label value for what a client sent: itself, `other`, or `none` if it is empty."""
        seen = self._seen.get(asked)
        if seen is not None:
            return seen
        if not asked:
            return NONE
        if len(self._seen) >= self._limit:
            return OTHER
        return self._seen.setdefault(asked, asked[:MAX_CHARACTERS])
