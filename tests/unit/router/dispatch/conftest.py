from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_model import write_tiny_model
from tests.unit.router.dispatch.dispatch_bench import DispatchBench


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def bench(tiny_model: Path) -> DispatchBench:
    """A bench with a prefill worker `p1` and a decode worker `d1`, both connected and silent so far."""
    bench = DispatchBench(tiny_model)
    for worker_id in ("p1", "d1"):
        bench.connect(worker_id)
        bench.sent(worker_id)
    return bench
