"""EngineCore as a copy of the worker process, which has imported all that both need."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
"""Environment variable by which vLLM is told whether to fork its processes or to spawn them."""

_engine_is_forked = threading.Event()


def may_fork() -> bool:
    """Return whether EngineCore may be forked from this process once vLLM has been imported.

    Importing torch and vLLM takes six seconds of a processor, and a forked process has them. vLLM spawns on CPUs,
    because threads of OpenMP do not survive a fork; a process that had not imported torch before has none, for nothing
    in the front end computes.
    """
    return "torch" not in sys.modules


@contextmanager
def forked_engine() -> Iterator[None]:
    """While entered, have vLLM fork its engine process, and load its plugins there once more."""
    import vllm.plugins

    before = os.environ.get(METHOD)
    # A plugin prepares the process that it is loaded in: it ties EngineCore's life to ours.
    vllm.plugins.plugins_loaded = False
    os.environ[METHOD] = "fork"
    _engine_is_forked.set()
    try:
        yield
    finally:
        _engine_is_forked.clear()
        if before is None:
            del os.environ[METHOD]
        else:
            os.environ[METHOD] = before


def _forget_signals_of_parent() -> None:
    """Take the parent's signal handling out of a forked engine.

    Python writes the number of every signal to a descriptor that it shares with the parent, whose event loop would take
    a SIGTERM of the engine for its own.
    """
    if _engine_is_forked.is_set():
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_signals_of_parent)
