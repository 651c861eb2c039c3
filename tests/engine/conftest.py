"""Engines for the tests of the vLLM adapter: started once, in float32 so that equal text means equal computation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CPU_CORES = sorted(os.sched_getaffinity(0))


def engine_config(core: int, **more: Any) -> Any:
    from services.engine.vllm.config import VllmEngineConfig

    defaults: dict[str, Any] = {
        "cpu_cores": (CPU_CORES[core % len(CPU_CORES)],),
        "dtype": "float32",
        "max_model_len": 4096,
        "kv_cache_bytes": 600 * 2**20,
        "kv_lease_s": 120.0,  # On a busy machine half a minute is gone before the last of many is pulled.
        "log_level": "ERROR",
    }
    return VllmEngineConfig(**{**defaults, **more})


@pytest.fixture(scope="session")
def loop() -> Iterator[Any]:
    from tests.engine.vllm_harness import LoopThread

    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def prefill(loop: Any, model_dir: Path) -> Iterator[Any]:
    from tests.engine.vllm_harness import EngineHarness

    harness = EngineHarness(loop, model_dir, engine_config(0, warm_up=False), "prefill-0")
    yield harness
    harness.shutdown()


@pytest.fixture(scope="session")
def decode(loop: Any, model_dir: Path) -> Iterator[Any]:
    from tests.engine.vllm_harness import EngineHarness

    harness = EngineHarness(loop, model_dir, engine_config(1), "decode-0")
    yield harness
    harness.shutdown()


@pytest.fixture(scope="session")
def lone(loop: Any, model_dir: Path) -> Iterator[Any]:
    """An engine that never exchanges KV with the others, except under a short lease."""
    from tests.engine.vllm_harness import EngineHarness

    harness = EngineHarness(loop, model_dir, engine_config(0, kv_lease_s=3.0, warm_up=False), "lone-0")
    yield harness
    harness.shutdown()


@pytest.fixture
def pair(prefill: Any, decode: Any) -> Any:
    from tests.engine.vllm_harness import Pair

    return Pair(prefill, decode)


@pytest.fixture(scope="session")
def text(model_dir: Path) -> list[int]:
    from tests.support.text import text_tokens

    return text_tokens(model_dir, 40_000)
