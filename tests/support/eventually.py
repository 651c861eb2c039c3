"""Waiting for what happens elsewhere."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 5.0


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
