"""The end of an engine's processes, whatever state they are in."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from services.engine.vllm.frontend.launched_engine import LaunchedEngine

log = logging.getLogger(__name__)

_KILL_WAIT_S = 3.0
_owned: set[int] = set()
"""Process ids of the engines that have started in this process."""


def own(pids: Iterable[int]) -> tuple[psutil.Process, ...]:
    """Take note of a started engine's processes, and return those that live."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
            _owned.add(pid)
    return tuple(found)


async def stop(launched: LaunchedEngine | None, launcher: ThreadPoolExecutor, grace_s: float) -> None:
    """End the engine process in order, and kill what is left after `grace_s` seconds.

    Args:
        launched: None while the engine is still starting; then its process is killed.
        launcher: where the engine was started; unusable afterwards.
    """
    if launched is None:
        family = _unowned()
    else:
        family = _with_descendants(launched.processes)
        shutdown = functools.partial(launched.client.shutdown, timeout=grace_s)
        ending = asyncio.get_running_loop().run_in_executor(launcher, shutdown)
        try:
            await asyncio.wait_for(asyncio.shield(ending), grace_s + 1.0)
        except TimeoutError:
            log.warning("vLLM's own shutdown did not end within %.1f s", grace_s + 1.0)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    await asyncio.to_thread(psutil.wait_procs, family, _KILL_WAIT_S)
    _owned.difference_update(process.pid for process in family)
    launcher.shutdown(wait=False, cancel_futures=True)


def _with_descendants(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    family = []
    for process in processes:
        family.append(process)
        with contextlib.suppress(psutil.NoSuchProcess):
            family.extend(process.children(recursive=True))
    return family


def _unowned() -> list[psutil.Process]:
    starting = [child.pid for child in multiprocessing.active_children() if child.name.startswith("EngineCore")]
    return _with_descendants(own(pid for pid in starting if pid is not None and pid not in _owned))
