"""How far apart the messages of one stream are, so that a router at its limit reads from workers before it writes.

A message to a client costs several times what a token does. Beyond what a process can write, reports of workers would
wait unread, ever longer; instead, tokens of a stream are joined for longer, until reports are read in time.
"""

from __future__ import annotations

import asyncio
import math

TICK_S = 0.02
IDLE_TICK_S = 0.25
LATE_S = 50e-3
"""Reports that waited longer show that the router does not keep up; the tokens of a step of a thousand streams take it
less to write."""
LEAST_S, MOST_S = 5e-3, 0.25
GROWTH, DECAY = 1.25, 0.98
"""Each tick. It falls slowly: what waits again at once would make it swing."""
DRIFT = 1e-4
"""By which two clocks may go apart, in parts of the time."""


def next_pace_s(pace_s: float, waited_s: float) -> float:
    """The pace after a tick in which reports waited unread for so long at most."""
    if waited_s > LATE_S:
        return min(MOST_S, max(LEAST_S, GROWTH * pace_s))
    return DECAY * pace_s if pace_s > LEAST_S else 0.0


class ReportDelay:
    """How long the reports of one worker wait, beyond the quickest of them: clocks of two hosts have no common zero."""

    __slots__ = ("_least_s", "_read_at_s")

    def __init__(self) -> None:
        self._least_s = math.inf
        self._read_at_s = -math.inf

    def waited_s(self, made_at_s: float, read_at_s: float) -> float:
        """
        Args:
            made_at_s: on the worker's clock.
            read_at_s: on the reader's.
        """
        between_s = read_at_s - made_at_s
        if self._least_s < math.inf:
            self._least_s += DRIFT * (read_at_s - self._read_at_s)
        self._least_s = min(self._least_s, between_s)
        self._read_at_s = read_at_s
        return between_s - self._least_s


class OutputCoalescer:
    """Sets the pace by what readers of reports tell it. Owned by one event loop."""

    def __init__(self) -> None:
        self.pace_s = 0.0
        """Time between two messages of a stream at least; 0 while the router keeps up."""
        self.streams = 0
        """Open now."""
        self._waited_s = 0.0

    @property
    def warning(self) -> str:
        """For operators; empty while tokens go to clients as they come."""
        if self.pace_s <= LEAST_S:
            return ""
        return f"this router is at its limit: tokens of a stream are joined for up to {self.pace_s * 1e3:.0f} ms"

    def report_waited(self, waited_s: float) -> None:
        """A report was read so long after the worker made it."""
        self._waited_s = max(self._waited_s, waited_s)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S if self.streams else IDLE_TICK_S)
            self.pace_s = next_pace_s(self.pace_s, self._waited_s) if self.streams else 0.0
            self._waited_s = 0.0
