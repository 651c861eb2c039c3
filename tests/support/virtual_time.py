"""An event loop in which waiting takes no time, so that stories of hours run in milliseconds, sockets included."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

STUCK_S = 5.0
"""Seconds of real time after which a story that waits for nothing is given up."""
BEGAN_S = 5000.0
"""Time on the clock when a story begins. Not 0: no duration must be taken for a time."""


class JumpingSelector(selectors.DefaultSelector):
    """Moves the clock to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = BEGAN_S
        self.late_s = 0.0
        """Seconds by which every timer is late, as on a busy machine."""
        self.calls = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.calls += 1
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            ready = super().select(STUCK_S)
            if not ready:
                raise AssertionError("nothing is left to wait for")
            return ready
        if timeout > 0.5 and (ready := super().select(0.005)):
            # The kernel may hold bytes between two sockets for a moment of real time.
            return ready
        self.now_s += timeout + self.late_s
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on the clock of a `JumpingSelector`."""

    def __init__(self) -> None:
        self.selector = JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now_s


def selector(loop: asyncio.AbstractEventLoop) -> JumpingSelector:
    """Return the selector of a loop in virtual time."""
    assert isinstance(loop, VirtualTimeLoop)
    return loop.selector


def run_virtual(story: Coroutine[Any, Any, T]) -> T:
    """Run a story to its end in an event loop where waiting takes no time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(story)


def elapsed_s() -> float:
    """Return the seconds since the story began."""
    return asyncio.get_running_loop().time() - BEGAN_S


def timers_s() -> list[float]:
    """Return the times, in order, for which timers of the running loop are set."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return sorted(timer.when() for timer in loop._scheduled if not timer.cancelled())  # type: ignore[attr-defined]
