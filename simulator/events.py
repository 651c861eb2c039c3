"""The clock of a simulation: a queue of events, each an action at a time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable


class Events:
    """An event queue that advances virtual time from one event to the next.

    Events at the same time happen in the order in which they were added, so that a run can be repeated exactly.
    """

    __slots__ = ("_heap", "_sequence", "now_s", "stopped")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stopped = False
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        """Call `action` when virtual time reaches `at_s`.

        Raises:
            ValueError: `at_s` is in the past, or not a number.
        """
        if not at_s >= self.now_s:
            raise ValueError(f"{at_s} s is before {self.now_s} s")
        self._sequence += 1
        heapq.heappush(self._heap, (at_s, self._sequence, action))

    def run(self, until_s: float = math.inf) -> None:
        """Let events happen until there are none left, `until_s` has passed, or an action has set `stopped`."""
        heap, pop = self._heap, heapq.heappop
        while heap and not self.stopped and heap[0][0] <= until_s:
            self.now_s, _, action = pop(heap)
            action()
