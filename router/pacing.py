"""How far apart the messages of one stream are, so that a router at its limit reads from workers before it writes.

A message to a client costs several times what a token does. Beyond what a process can write, reports of workers would
wait unread, ever longer; instead, tokens of a stream are joined for longer, until the event loop keeps up.
"""

from __future__ import annotations

import asyncio
import time

TICK_S = 0.02
IDLE_TICK_S = 0.25
LATE_S = 25e-3
"""A timer that is later than this, as often as not, means that the loop has more to do than it can: a step of many
streams, or another process on the core, makes it a few milliseconds late now and then.
"""
BUSY_SHARE = 0.75
"""Of a core that the event loop's thread uses: beyond it little is left, and reports begin to wait."""
SMOOTHING = 0.1
"""Weight of the newest tick in that share: bursts are no limit."""
LEAST_S, MOST_S = 5e-3, 0.25
GROWTH, DECAY = 1.25, 0.8


def next_pace_s(pace_s: float, late_s: float, busy_share: float) -> float:
    """The pace after a timer came so late, with the loop's thread so busy."""
    if late_s > LATE_S or busy_share > BUSY_SHARE:
        return min(MOST_S, max(LEAST_S, GROWTH * pace_s))
    return DECAY * pace_s if pace_s > LEAST_S else 0.0


class Pacer:
    """Watches the event loop it runs on."""

    def __init__(self) -> None:
        self.pace_s = 0.0
        """Time between two messages of a stream at least; 0 while the loop keeps up."""
        self.streams = 0
        """Open now."""

    @property
    def warning(self) -> str:
        """For operators; empty while tokens go to clients as they come."""
        if self.pace_s <= LEAST_S:
            return ""
        return f"this router is at its limit: tokens of a stream are joined for up to {self.pace_s * 1e3:.0f} ms"

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        busy_share = 0.0
        while True:
            if not self.streams:
                self.pace_s = busy_share = 0.0
                await asyncio.sleep(IDLE_TICK_S)
                continue
            began_s, cpu_s = loop.time(), time.thread_time()
            await asyncio.sleep(TICK_S)
            took_s = loop.time() - began_s
            busy_share += SMOOTHING * ((time.thread_time() - cpu_s) / took_s - busy_share)
            self.pace_s = next_pace_s(self.pace_s, took_s - TICK_S, busy_share)
