"""How far apart the messages of one stream are, so that a router at its limit reads from workers before it writes.

A message to a client costs several times what a token does. Beyond what a process can write, reports of workers would
wait unread, ever longer; instead, tokens of a stream are joined for longer, until the event loop keeps up.
"""

from __future__ import annotations

import asyncio

TICK_S = 0.02
IDLE_TICK_S = 0.25
LATE_S = 25e-3
"""A timer that is later than this, as often as not, means that the loop has more to do than it can: a step of many
streams, or another process on the core, makes it a few milliseconds late now and then.
"""
LEAST_S, MOST_S = 5e-3, 0.25
GROWTH, DECAY = 1.25, 0.8


def next_pace_s(pace_s: float, late_s: float) -> float:
    """The pace after a timer came so late."""
    if late_s > LATE_S:
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
        while True:
            if not self.streams:
                self.pace_s = 0.0
                await asyncio.sleep(IDLE_TICK_S)
                continue
            due_s = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.pace_s = next_pace_s(self.pace_s, loop.time() - due_s)
