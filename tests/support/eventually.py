"""Waiting for what happens elsewhere. A machine under load may take long: limits only bound a failure."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 30.0
LONG_PATIENCE_S = 120.0
COMMAND_PATIENCE_S = 300.0
"""Seconds that a command which starts processes may take."""
POLL_S = 0.01


async def eventually(condition: Callable[[], object]) -> None:
    """Until a condition, which may be a coroutine function, holds."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = LONG_PATIENCE_S) -> None:
    """Until a condition holds, from a thread without an event loop."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(POLL_S)
