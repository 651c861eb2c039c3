"""What tells that an input did harm although it was answered."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from asyncio import events
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psutil

BLOCKED_S = 0.25
"""CPU time of the event loop's thread within one callback that counts as a fault. Far more than the router allows
itself, because here the workers, the gateway and the fuzzer share the loop, and the machine may be busy."""
STANDS_S = 5.0
"""Seconds within one turn of the event loop after which is told where it stands."""
NOTICED_S = 0.01
"""CPU time of one callback that is counted."""


class FaultError(Exception):
    """An input did what no input may do."""


@dataclass(slots=True)
class Watch(logging.Handler):
    """Collects errors in the log, exceptions that nobody awaited, and callbacks that held the event loop."""

    faults: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    """CPU time of the longest callback so far."""
    longest: str = ""
    """What that callback was."""
    counts: Counter[str] = field(default_factory=Counter)
    own_s: float = 0.0
    """Time within the present turn of the event loop that the fuzzer itself took to make inputs."""
    _turns: int = 0
    _cpu_s: float = 0.0
    """CPU time of the thread at the end of the last turn of the event loop."""

    def __post_init__(self) -> None:
        logging.Handler.__init__(self, logging.WARNING)

    def __hash__(self) -> int:
        return id(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.counts[record.levelname.lower() + "s"] += 1
        if record.levelno >= logging.ERROR or record.exc_info:
            formatted = logging.Formatter("%(name)s: %(message)s").format(record)
            self.faults.append(f"logged: {formatted}"[:6000])

    def install(self) -> None:
        """Begin to watch the running event loop and the root logger."""
        logging.getLogger().addHandler(self)
        loop: Any = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        run, once = events.Handle._run, loop._run_once
        slowest: list[Any] = [0.0, None]

        # Reading the CPU time takes a system call, so that it is read once for all callbacks that were due together;
        # which of them took longest is told by the wall clock.
        def measured(handle: events.Handle) -> None:
            began_s = time.perf_counter()
            run(handle)
            took_s = time.perf_counter() - began_s
            if took_s > NOTICED_S and took_s > slowest[0]:
                slowest[:] = took_s, handle

        def timed() -> None:
            slowest[:] = 0.0, None
            self._turns += 1
            once()
            cpu_s = time.thread_time()
            if slowest[1] is not None:
                self._held(slowest[1], min(cpu_s - self._cpu_s, slowest[0]) - self.own_s)
            self._cpu_s, self.own_s = cpu_s, 0.0

        events.Handle._run = measured  # type: ignore[method-assign, assignment]
        loop._run_once = timed
        threading.Thread(target=self._look, args=(threading.get_ident(),), name="watch", daemon=True).start()

    def _look(self, thread: int) -> None:
        """Tell where the event loop stands when it has been within one turn for `STANDS_S`, as long as there is one."""
        seen = -1
        while True:
            time.sleep(STANDS_S)
            if self._turns != seen:
                seen = self._turns
            elif (frame := sys._current_frames().get(thread)) is not None:
                where = "".join(traceback.format_stack(frame)[-12:])
                if "select(" not in where[-300:]:
                    self.faults.append(f"the event loop stands still:\n{where}"[:4000])
                    # It may stand for ever, so that nobody takes the fault.
                    sys.stderr.write(f"the event loop stands still:\n{where}\n")

    def _held(self, handle: Any, took_s: float) -> None:
        if took_s <= NOTICED_S:
            return
        self.counts[f"beyond {NOTICED_S * 1000:g} ms"] += 1
        if took_s > self.longest_s:
            self.longest_s, self.longest = took_s, repr(handle)[:300]
        if took_s > BLOCKED_S:
            self.faults.append(f"the event loop was held for {took_s:.3f} s of CPU time by {handle!r}"[:1000])

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        what = context.get("task") or context.get("future") or context.get("asyncgen")
        self.faults.append(f"unhandled: {context.get('message')}: {context.get('exception')!r} in {what!r}"[:2000])

    def taken(self) -> list[str]:
        """Return what was seen since the last call."""
        seen, self.faults = self.faults, []
        return seen


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    resident: int = psutil.Process().memory_info().rss
    return resident
