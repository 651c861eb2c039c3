"""A forked engine process: which start is used, and whose signals it handles."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import types
from collections.abc import Iterator

import pytest

from services.engine.vllm.frontend import forking
from services.engine.vllm.frontend.forking import METHOD, forked_engine, may_fork


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stand-in for vLLM's list of plugins, which takes seconds to import."""
    package, plugins = types.ModuleType("vllm"), types.ModuleType("vllm.plugins")
    package.plugins = plugins  # type: ignore[attr-defined]
    plugins.plugins_loaded = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.plugins", plugins)
    return plugins


@pytest.fixture
def noted() -> Iterator[list[int]]:
    """SIGTERM of this process is noted, and written to a descriptor as an event loop has it."""
    received: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.setblocking(False)
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    descriptor = signal.set_wakeup_fd(writer.fileno())
    yield received
    signal.set_wakeup_fd(descriptor)
    signal.signal(signal.SIGTERM, before)
    try:
        received += reader.recv(10)
    except BlockingIOError:
        received.append(0)
    assert received == [0], "a signal of the engine reached the worker"
    reader.close()
    writer.close()


def _end_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def test_a_signal_that_ends_the_engine_does_not_reach_the_worker(noted: list[int]) -> None:
    with forked_engine():
        process = multiprocessing.get_context("fork").Process(target=_end_by_signal)
        process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGTERM
    assert noted == []


def test_the_engine_loads_its_plugins_itself(plugins: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METHOD, "spawn")
    with forked_engine():
        assert os.environ[METHOD] == "fork"
        assert not plugins.plugins_loaded
    assert os.environ[METHOD] == "spawn"


def test_what_nobody_had_set_is_not_set_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(METHOD, raising=False)
    with pytest.raises(RuntimeError), forked_engine():
        raise RuntimeError
    assert METHOD not in os.environ
    assert not forking._engine_is_forked.is_set()


def test_a_process_that_had_imported_torch_before_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert not may_fork()
    monkeypatch.delitem(sys.modules, "torch")
    assert may_fork()
