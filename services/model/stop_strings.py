"""Detection of stop strings in a text that grows piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Checked:
    """Text that can be shown, and the stop string that ended it, if one did."""

    text: str
    matched: str = ""


class StopStrings:
    """Ends one text before its first stop string, and holds back what may become the beginning of one.

    After a match there must be no further call of `feed`.
    """

    def __init__(self, stops: Sequence[str], *, include_match: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_match = include_match
        self._held = ""

    def feed(self, text: str, *, armed: bool = True) -> Checked:
        """Add text, and return the text that can be shown now.

        Args:
            armed: False while a minimum number of tokens is not reached; a stop string that lies wholly before that
                point does not end the text.
        """
        if not self._stops:
            return Checked(text)
        if not armed:
            shown, self._held = self._held + text, ""
            return Checked(shown)
        self._held += text
        found = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, _, stop = min(found)
            shown = self._held[: at + len(stop) if self._include_match else at]
            self._held = ""
            return Checked(shown, stop)
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return Checked(shown)

    def flush(self) -> str:
        """Return the text that is held back, once no more will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
