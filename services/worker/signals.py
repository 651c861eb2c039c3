"""Handling of SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While entered, calls `stop` in the event loop at the first signal, and ends the process at the second.

    Python's own handlers are used and not the event loop's, so that the second signal works even when the loop is
    blocked. Only the main thread may enter.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._received = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received += 1
        if self._received > 1:
            # No clean-up on purpose: this is for a shutdown that hangs. The record in Redis expires.
            os._exit(128 + number)
        self._loop.call_soon_threadsafe(self._begin, signal.Signals(number).name)

    def _begin(self, name: str) -> None:
        _log.info("%s received; draining, a second one ends the process at once", name)
        self._stop()
