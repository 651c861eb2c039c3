"""The machine code of a router's planner: loaded if it is kept, else made beside the router, which serves meanwhile."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

from services.slo.planner import interpret, machine_code_is_kept, warm_up

COMPILER = "router.compile_planner"
NOT_STARTED = -1
LEAST_URGENT = 10
"""Nice value of the program that compiles: engines that start at the same time are waited for, and it is not."""

_log = logging.getLogger(__name__)


async def load_or_compile() -> list[asyncio.Task[None]]:
    """Have the planner ready to answer, and return what is still under way.

    Machine code that is kept is loaded before this returns, which takes a few tenths of a second. Otherwise Python
    interprets the planner until the returned task has ended: the same decisions, at about ten milliseconds for a round
    of twenty requests. Cancelling the task ends the compilation.
    """
    began_s = time.monotonic()
    if await asyncio.to_thread(machine_code_is_kept):
        await _in_daemon_thread()
        _log.info("the planner is loaded (%.1f s)", time.monotonic() - began_s)
        return []
    interpret(True)
    _log.info("the planner is interpreted until it is compiled, which takes about half a minute of a processor")
    return [asyncio.create_task(_compile(began_s), name="compile the planner")]


async def _compile(began_s: float) -> None:
    code = await _run_compiler()
    if code != 0:
        _log.warning("the compiler of the planner ended with %d; it is compiled in this process, and not kept", code)
    await _in_daemon_thread()
    interpret(False)
    # As with all that a router loads at its start: a pass over it would stop every stream.
    gc.freeze()
    _log.info("the planner is compiled (%.1f s)", time.monotonic() - began_s)


async def _run_compiler() -> int:
    """Run the program that compiles, and return its exit code. It holds neither our interpreter lock nor our cores."""
    try:
        program = await asyncio.create_subprocess_exec(sys.executable, "-m", COMPILER, stdin=subprocess.DEVNULL)
    except OSError as error:
        _log.warning("the compiler of the planner cannot be started: %s", error)
        return NOT_STARTED
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, program.pid, LEAST_URGENT)
    try:
        return await program.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            program.kill()
        raise


async def _in_daemon_thread() -> None:
    """Load the machine code, or make it if it could not be kept.

    The thread is a daemon, because half a minute of compiling must not keep a process alive that was told to stop.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def load() -> None:
        warm_up()
        with suppress(RuntimeError):  # The loop is closed if the router was told to stop.
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=load, name="load the planner", daemon=True).start()
    await done.wait()
