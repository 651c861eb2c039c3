"""The entry point of vLLM's plugin group `vllm.general_plugins`, which vLLM calls in each of its processes.

It is called once in the front end, EngineCore and every worker process, before the model is built. It is idempotent and
must stay light.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

from services.engine.vllm.shared.control_channel import CORE_CALL
from services.engine.vllm.shared.process_groups import share_single_rank_groups

_PR_SET_PDEATHSIG = 1
_ENGINE_PROCESS_NAMES = ("EngineCore", "VllmWorker")


def register() -> None:
    """Prepare this process for the adapter."""
    die_with_parent()
    permit_amx()
    share_single_rank_groups()
    open_control_channel()


def die_with_parent() -> None:
    """Have the kernel kill an engine process when the worker that started it is gone, however it went.

    The signal follows the thread that started the process, so the launcher's thread must live as long as the engine.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(_ENGINE_PROCESS_NAMES):
        return
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)


def permit_amx() -> None:
    """Ask the kernel for AMX tiles. vLLM's attention uses them without asking, and small models die of SIGILL."""
    import torch

    init_amx = getattr(torch.cpu, "_init_amx", None)
    if init_amx is not None:
        init_amx()


def open_control_channel() -> None:
    """Let the front end call methods of the scheduler: EngineCore looks utility calls up by attribute name."""
    core = sys.modules.get("vllm.v1.engine.core")
    if core is None or hasattr(core.EngineCore, CORE_CALL):
        return

    def call(engine_core: object, method: str, arguments: list[object]) -> object:
        scheduler = engine_core.scheduler  # type: ignore[attr-defined]
        if method not in scheduler.REMOTE_METHODS:
            raise ValueError(f"{method} is not a remote method of the scheduler")
        return getattr(scheduler, method)(*arguments)

    setattr(core.EngineCore, CORE_CALL, call)
