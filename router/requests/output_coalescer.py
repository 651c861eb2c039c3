"""The least time between two messages of one stream, so that a router at its limit reads from workers before it writes.

A message to a client costs several times what a token does. Beyond what a process can write, reports of workers would
wait unread, ever longer. Instead the tokens of a stream are joined for longer, until reports are read in time.
"""

from __future__ import annotations

import asyncio
import math

TICK_S = 0.02
"""Seconds between two adjustments of the interval while streams are open; `IDLE_TICK_S` while none is."""
IDLE_TICK_S = 0.25
LATE_S = 50e-3
"""Seconds that a report may wait unread. Longer waits show that the router does not keep up: the tokens of a step of a
thousand streams take it less to write."""
LEAST_S, MOST_S = 5e-3, 0.25
"""Bounds of the interval in seconds, if there is one at all."""
GROWTH, DECAY = 1.25, 0.98
"""Factors of the interval at each tick. It falls slowly, because one that falls fast must grow again at once."""
DRIFT = 1e-4
"""Seconds by which the clocks of two hosts may drift apart in one second."""


def next_interval_s(interval_s: float, waited_s: float) -> float:
    """Return the interval after a tick in which no report waited unread for longer than `waited_s`."""
    if waited_s > LATE_S:
        return min(MOST_S, max(LEAST_S, GROWTH * interval_s))
    return DECAY * interval_s if interval_s > LEAST_S else 0.0


class ReportDelay:
    """Tells how long the reports of one worker wait to be read.

    The clocks of two hosts have no common zero, so that a wait is measured against the quickest report so far.
    """

    __slots__ = ("_least_s", "_read_at_s")

    def __init__(self) -> None:
        self._least_s = math.inf
        self._read_at_s = -math.inf

    def waited_s(self, made_at_s: float, read_at_s: float) -> float:
        """Return the seconds that a report waited.

        Args:
            made_at_s: when the worker made the report, on the worker's clock.
            read_at_s: when the router read it, on the router's clock.
        """
        between_s = read_at_s - made_at_s
        if not math.isfinite(between_s):
            # A worker whose clock says no time has told nothing; what it reports else is judged elsewhere.
            return 0.0
        if self._least_s < math.inf:
            self._least_s += DRIFT * (read_at_s - self._read_at_s)
        self._least_s = min(self._least_s, between_s)
        self._read_at_s = read_at_s
        return between_s - self._least_s


class OutputCoalescer:
    """Sets how long tokens of a stream are joined, by how long reports waited. Owned by the router's event loop."""

    def __init__(self) -> None:
        self.interval_s = 0.0
        """Least seconds between two messages of a stream; 0 while the router keeps up."""
        self.streams = 0
        """Number of open streams, kept up by whoever serves them."""
        self._waited_s = 0.0

    @property
    def warning(self) -> str:
        """A sentence for operators; empty while tokens go to clients as they come."""
        if self.interval_s <= LEAST_S:
            return ""
        return f"this router is at its limit: tokens of a stream are joined for up to {self.interval_s * 1e3:.0f} ms"

    def report_waited(self, waited_s: float) -> None:
        """Note that a report was read so many seconds after the worker made it."""
        self._waited_s = max(self._waited_s, waited_s)

    async def run(self) -> None:
        """Adjust the interval until cancelled."""
        while True:
            await asyncio.sleep(TICK_S if self.streams else IDLE_TICK_S)
            self.tick()

    def tick(self) -> None:
        """Adjust the interval to the longest wait since the last tick; without open streams there is no interval."""
        self.interval_s = next_interval_s(self.interval_s, self._waited_s) if self.streams else 0.0
        self._waited_s = 0.0
