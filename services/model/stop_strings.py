"""Detection of stop strings in a text that grows piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Checked:
    """Text that can be shown, and the stop string that ended it, if one did."""

    text: str
    matched: str = ""


class StopStrings:
    """Ends one text before its first stop string, and holds back what may become the beginning of one.

    A piece of text costs time in proportion to its length, however many stop strings there are and however they
    overlap. After a match there must be no further call of `feed`.
    """

    def __init__(self, stops: Sequence[str], *, include_match: bool = False) -> None:
        self._automaton = _Automaton(stops) if stops else None
        self._include_match = include_match
        self._held = ""
        self._state = 0

    def feed(self, text: str, *, armed: bool = True) -> Checked:
        """Add text, and return the text that can be shown now.

        Of several stop strings that the piece completes, the one that begins first ends the text, and the longest of
        those that begin at the same place.

        Args:
            armed: False while a minimum number of tokens is not reached; a stop string that begins before that point
                does not end the text.
        """
        automaton = self._automaton
        if automaton is None:
            return Checked(text)
        text, offset = self._held + text, len(self._held)
        if not armed:
            self._held, self._state = "", 0
            return Checked(text)
        begins, ends = len(text), 0
        state = self._state
        for at in range(offset, len(text)):
            state = automaton.step(state, text[at])
            length = automaton.longest_match[state]
            if length and at + 1 - length <= begins:
                begins, ends = at + 1 - length, at + 1
        if ends:
            self._held, self._state = "", 0
            return Checked(text[: ends if self._include_match else begins], text[begins:ends])
        self._state = state
        cut = len(text) - automaton.depth[state]
        self._held = text[cut:]
        return Checked(text[:cut])

    def flush(self) -> str:
        """Return the text that is held back, once no more will come."""
        held, self._held, self._state = self._held, "", 0
        return held


class _Automaton:
    """Matches several strings at once in a text that is read one character at a time.

    Aho and Corasick, "Efficient string matching: an aid to bibliographic search", CACM 18(6), 1975. A state stands for
    the longest end of the text that begins one of the strings; 0 is the empty one.
    """

    __slots__ = ("_children", "_fall_back", "depth", "longest_match")

    def __init__(self, strings: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._fall_back = [0]
        """For each state the state of its longest proper end."""
        self.depth = [0]
        """For each state the number of characters that it stands for."""
        self.longest_match = [0]
        """For each state the length of the longest string that the text ends with there; 0 without one."""
        for string in strings:
            self._add(string)
        self._link()

    def step(self, state: int, character: str) -> int:
        """Return the state after one more character; on average a constant number of look-ups."""
        children = self._children
        while True:
            following = children[state].get(character)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self._fall_back[state]

    def _add(self, string: str) -> None:
        state = 0
        for character in string:
            following = self._children[state].get(character)
            if following is None:
                following = len(self._children)
                self._children[state][character] = following
                self._children.append({})
                self._fall_back.append(0)
                self.depth.append(self.depth[state] + 1)
                self.longest_match.append(0)
            state = following
        self.longest_match[state] = len(string)

    def _link(self) -> None:
        """Set where each state falls back to, shorter ones first."""
        waiting = deque(self._children[0].values())
        while waiting:
            state = waiting.popleft()
            fall_back = self._fall_back[state]
            self.longest_match[state] = self.longest_match[state] or self.longest_match[fall_back]
            for character, child in self._children[state].items():
                self._fall_back[child] = self.step(fall_back, character)
                waiting.append(child)
