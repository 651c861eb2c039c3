"""Open loop: every request is sent at its time, whatever became of those before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.load.exchange import End, Exchange
from benchmarks.load.schedule import Schedule
from benchmarks.load.wire import NotServedError, RefusalError, Send, Wire

LEAD_S = 0.1
"""Between the call and the time from which a schedule counts."""
BEAT_S = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """A schedule that was driven."""

    schedule: Schedule
    exchanges: tuple[Exchange, ...]
    """Exchanges of everything that was sent."""
    began_s: float
    wall_s: float
    cpu_s: float
    """CPU seconds of this process."""
    pauses_s: tuple[float, ...]
    """How late this process came to anything at all, asked fifty times a second."""
    cut_short: bool
    """Somebody said stop; what was under way then counts for nothing."""


async def drive(
    wire: Wire,
    schedule: Schedule,
    *,
    patience_s: float,
    stop: asyncio.Event,
    progress: Callable[[Exchange], None] = lambda _: None,
) -> Run:
    """
    Args:
        patience_s: after the last request was sent, those still running are given up.
        stop: end at once.
        progress: told of every exchange that has ended.
    """
    began_s, cpu_began_s = time.monotonic() + LEAD_S, time.process_time()
    exchanges: list[Exchange] = []
    running: set[asyncio.Task[None]] = set()
    broken: list[BaseException] = []
    pauses_s: list[float] = []
    beating = asyncio.create_task(_beat(pauses_s))
    stopping = asyncio.create_task(stop.wait())
    try:
        for planned in schedule.planned:
            send = wire.prepare(planned)
            exchange = Exchange(planned, began_s + planned.at_s)
            await _until(exchange.due_s, stopping)
            if stop.is_set():
                break
            exchanges.append(exchange)
            task = asyncio.create_task(_one(send, exchange, progress))
            running.add(task)
            task.add_done_callback(lambda done: _note(done, running, broken))
        ending = asyncio.ensure_future(asyncio.wait(running)) if running else stopping
        await asyncio.wait({ending, stopping}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for doing in (*running, beating, stopping):
            doing.cancel()
        await asyncio.gather(*running, beating, stopping, return_exceptions=True)
    if broken:
        raise broken[0]
    return Run(
        schedule=schedule,
        exchanges=tuple(exchanges),
        began_s=began_s,
        wall_s=time.monotonic() - began_s,
        cpu_s=time.process_time() - cpu_began_s,
        pauses_s=tuple(pauses_s),
        cut_short=stop.is_set(),
    )


async def _one(send: Send, exchange: Exchange, progress: Callable[[Exchange], None]) -> None:
    exchange.sent_s = time.monotonic()
    try:
        await send(exchange)
        exchange.end = End.COMPLETE
    except RefusalError as error:
        exchange.end, exchange.reason, exchange.detail = End.REFUSED, error.reason, error.detail
    except NotServedError as error:
        exchange.end, exchange.reason, exchange.detail = End.ERROR, error.reason, error.detail
    except asyncio.CancelledError:
        exchange.end = End.UNFINISHED
        raise
    finally:
        exchange.ended_s = time.monotonic()
        progress(exchange)


def _note(done: asyncio.Task[None], running: set[asyncio.Task[None]], broken: list[BaseException]) -> None:
    running.discard(done)
    if not done.cancelled() and (error := done.exception()) is not None:
        broken.append(error)


async def _until(due_s: float, stopping: asyncio.Task[bool]) -> None:
    wait_s = due_s - time.monotonic()
    if wait_s > 0:
        await asyncio.wait({stopping}, timeout=wait_s)
    else:
        # Behind: the requests under way must be served all the same.
        await asyncio.sleep(0)


async def _beat(pauses_s: list[float]) -> None:
    while True:
        due_s = time.monotonic() + BEAT_S
        await asyncio.sleep(BEAT_S)
        pauses_s.append(time.monotonic() - due_s)
