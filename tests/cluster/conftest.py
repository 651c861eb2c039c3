from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import ClusterUnderTest, cluster_under_test
from tests.support.collector import Collector, running_collector
from tests.support.compared_prompts import batches
from tests.support.http_door import HttpDoor, http_door
from tests.support.stock_vllm import stock_answers
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EMULATED = """
[model]
path = "{model}"
[launcher]
run_dir = "{run_dir}"
prefill = {prefill}
decode = {decode}
[router]
port = 0
no_worker_patience_s = {patience_s}
[redis]
heartbeat_s = 0.2
heartbeat_ttl_s = 1.0
[engine]
kind = "emulated"
[engine.emulated]
overhead_s = 0.01
kv_lease_s = 10
kv_blocks = 1024
"""
EXPORTING = """
[telemetry]
otlp_endpoint = "{collector}"
otlp_interval_s = 1
[log]
format = "json"
"""


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """What the emulated cluster and its gateway export to."""
    with running_collector() as running:
        yield running


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[ClusterUnderTest]:
    """One prefill and two decode workers with emulated engines; tests that kill start again what they killed."""
    directory = tmp_path_factory.mktemp("emulated")
    config = directory / "cluster.toml"
    config.write_text(
        EMULATED.format(
            model=write_tiny_model(directory / "tiny"),
            run_dir=directory / "run",
            prefill=2,
            decode=2,
            patience_s=2.0,
        )
        + EXPORTING.format(collector=collector.endpoint)
    )
    with cluster_under_test(config) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    """One emulated worker of each kind and a gateway, for tests that hold workers up: what is promised afterwards
    depends on it.
    """
    directory = tmp_path_factory.mktemp("disturbed")
    config = directory / "cluster.toml"
    text = EMULATED.format(
        model=write_tiny_model(directory / "tiny"), run_dir=directory / "run", prefill=1, decode=1, patience_s=2.0
    )
    config.write_text(text.replace("[launcher]", "[launcher]\ngateway = true") + "[gateway]\nport = 0\n")
    with cluster_under_test(config) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def door(
    emulated: ClusterUnderTest, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpDoor]:
    """An HTTP gateway to the emulated cluster, started alone."""
    model = emulated.launcher.settings.model.path
    with http_door(tmp_path_factory.mktemp("door"), [emulated.address], model, collector.endpoint) as running:
        yield running


REAL = """
[model]
path = "{model}"
name = "SmolLM2-135M-Instruct"
[launcher]
run_dir = "{run_dir}"
[router]
port = 0
no_worker_patience_s = 300
[redis]
heartbeat_s = 0.5
heartbeat_ttl_s = 3.0
[engine.vllm]
dtype = "float32"
max_model_len = 4096
kv_cache_bytes = 536870912
"""


@pytest.fixture(scope="session")
def stock(model_dir: Path) -> dict[str, list[list[int]]]:
    """What one stock vLLM engine says to all prompts that are compared; it runs before the cluster does."""
    asked = batches(model_dir)
    return dict(zip(asked, stock_answers(model_dir, list(asked.values())), strict=True))


@pytest.fixture(scope="session")
def real_config(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("real")
    config = directory / "cluster.toml"
    config.write_text(REAL.format(model=model_dir, run_dir=directory / "run"))
    return config


@pytest.fixture(scope="session")
def real(real_config: Path) -> Iterator[ClusterUnderTest]:
    """One prefill and one decode worker with real vLLM in float32; tests that kill start again what they killed."""
    with cluster_under_test(real_config) as cluster:
        yield cluster
