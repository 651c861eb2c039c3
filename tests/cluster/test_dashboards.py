"""Every query of every Grafana dashboard, asked of a real Prometheus that scrapes an emulated cluster."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest

from deploy.local.run_directory import TARGETS_FILE
from slos_serve.v1 import contract_pb2
from tests.support.cluster import ClusterUnderTest, greedy
from tests.support.dashboards import FILES, expressions, variable_queries
from tests.support.eventually import wait_until
from tests.support.prometheus import Prometheus, prometheus
from tests.support.promises import promised, provoke_a_miss

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster

BETWEEN_S = 2.5
"""Scrapes come every second, and a rate needs two."""


@pytest.fixture(scope="module")
def scraped(disturbed: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen requests of every kind end in every way."""
    targets = disturbed.launcher.settings.launcher.run_dir / TARGETS_FILE
    with prometheus(tmp_path_factory.mktemp("dashboards"), targets) as running:
        disturbed.wait_ready(2)
        wait_until(lambda: running.targets_up() == 4, "router, gateway and both workers are scraped")
        for _ in range(2):
            _load(disturbed)
            time.sleep(BETWEEN_S)
        provoke_a_miss(disturbed, "dashboards-missed")
        time.sleep(BETWEEN_S)
        yield running


def _load(cluster: ClusterUnderTest) -> None:
    with ThreadPoolExecutor(8) as pool:
        kept = [pool.submit(cluster.generate, promised()) for _ in range(8)]
        unpromised = pool.submit(cluster.generate, greedy(list(range(20, 300)), 10))
        assert all(answer.result() for answer in [*kept, unpromised])
    refused = promised()
    refused.contract.stages[0].prefill.ttft_s = 1e-4
    refused.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    with pytest.raises(grpc.RpcError):
        cluster.generate(refused)
    url = f"http://{cluster.gateway_address}/v1/completions"
    assert httpx.post(url, json={"prompt": "hello", "max_tokens": 4}, timeout=60).status_code == httpx.codes.OK


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_query_parses_and_finds_data(scraped: Prometheus, file: Path) -> None:
    without = {f"{title}: {expression}" for title, expression in expressions(file) if not scraped.has_data(expression)}
    assert not without
    for metric, label in variable_queries(file):
        assert scraped.label_values(metric, label), f"{label} of {metric}"


def test_prometheus_counts_what_the_router_counts(scraped: Prometheus, disturbed: ClusterUnderTest) -> None:
    counters = disturbed.state().counters
    assert counters.missed >= 1
    assert scraped.values("sum(slos_promises_kept_total)") == [counters.kept]
    assert scraped.values("sum(slos_promises_missed_total)") == [counters.missed]
