"""The delay of the event loop, on which every stream of a router waits."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from services.telemetry.catalogue import router as catalogue
from services.telemetry.meters import Meters

INTERVAL_S = 0.05
"""Seconds between two measurements: twenty a second cost a thousandth of a core."""


async def watch(meters: Meters) -> NoReturn:
    """Measure how late the event loop comes back from a sleep, until cancelled."""
    delays = meters.histogram(catalogue.LOOP_DELAY)
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        delays.record(max(0.0, loop.time() - due_s))
