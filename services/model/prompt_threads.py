"""Threads that turn prompts into token ids beside an event loop, and whose turn it is among clients."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

INLINE_CHARACTERS = 4096
"""Longest text that is converted on the event loop: 1 ms on a core of an AMD EPYC, 4 ms if every character is a rare
one."""
MESSAGE_CHARACTERS = 32
"""Characters that one message of a conversation counts for besides its own: rendering 4,096 empty ones takes 31 ms."""
LONG_CHARACTERS = 64 * 1024
"""Length from which texts have a thread of their own, so that short ones need not wait for them."""
MAX_WAITING = 1024
"""Largest number of texts that wait for a thread."""
MAX_WAITING_OF_CLIENT = 64
"""Largest number of texts of one client that wait for a thread."""

T = TypeVar("T")


class TooManyPromptsError(Exception):
    """Too many texts wait for a thread already."""


@dataclass(slots=True)
class FairTurns(Generic[T]):
    """A queue in which clients take turns by the cost of what they ask for, however many items each of them has.

    Start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996, with equal weights.
    """

    _heap: list[tuple[float, int, str, T]] = field(default_factory=list)
    _finish: dict[str, float] = field(default_factory=dict)
    """For each client with an item in the queue the virtual time at which its last item will be done."""
    _waiting: Counter[str] = field(default_factory=Counter)
    _virtual_time: float = 0.0
    _number: itertools.count[int] = field(default_factory=itertools.count)

    def __len__(self) -> int:
        return len(self._heap)

    def waiting_of(self, client: str) -> int:
        """Return how many items of a client wait."""
        return self._waiting[client]

    def push(self, client: str, cost: float, item: T) -> None:
        """Add an item.

        Args:
            cost: what the item will cost, in any unit that is the same for all; not negative.
        """
        start = max(self._virtual_time, self._finish.get(client, 0.0))
        self._finish[client] = start + cost
        self._waiting[client] += 1
        heapq.heappush(self._heap, (start, next(self._number), client, item))

    def pop(self) -> T:
        """Remove the item whose turn it is.

        Raises:
            IndexError: the queue is empty.
        """
        start, _, client, item = heapq.heappop(self._heap)
        self._virtual_time = start
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]
        if not self._heap:
            # Nobody waits: what clients were given before counts for nothing, so that idle ones are forgotten.
            self._finish.clear()
            self._virtual_time = 0.0
        return item


class PromptThreads:
    """Runs conversions of texts for one event loop: short ones at once, others in one of two threads."""

    def __init__(self) -> None:
        self._short = _Lane("short-prompts")
        self._long = _Lane("long-prompts")

    async def run(self, client: str, characters: int, convert: Callable[[], T]) -> T:
        """Return what `convert` returns, or raise what it raises.

        Args:
            client: who asks; clients have fair shares of a thread.
            characters: length of the text, which its cost is taken to be in proportion to.

        Raises:
            TooManyPromptsError: too many texts wait, of all clients or of this one.
        """
        if characters <= INLINE_CHARACTERS:
            return convert()
        lane = self._long if characters > LONG_CHARACTERS else self._short
        return await lane.run(client, characters, convert)


class _Lane:
    """One thread, and the texts that wait for it."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._turns: FairTurns[asyncio.Future[None]] = FairTurns()
        self._busy = False

    async def run(self, client: str, cost: int, convert: Callable[[], T]) -> T:
        if len(self._turns) >= MAX_WAITING or self._turns.waiting_of(client) >= MAX_WAITING_OF_CLIENT:
            raise TooManyPromptsError
        if self._busy:
            turn = asyncio.get_running_loop().create_future()
            self._turns.push(client, cost, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next()
                raise
        self._busy = True
        work = asyncio.get_running_loop().run_in_executor(self._thread, convert)
        # The thread goes on when the caller leaves: the next turn begins when the work is done, not when nobody waits.
        work.add_done_callback(lambda _: self._next())
        return await asyncio.shield(work)

    def _next(self) -> None:
        while self._turns:
            turn = self._turns.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
