"""A real Prometheus, if this machine has one."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local import processes
from deploy.local.ports import free_port
from services.network.address import LOOPBACK
from tests.support.eventually import wait_until

CONFIGURATION = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: slos-serve
    file_sd_configs:
      - files: {targets}
"""
STOP_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def values(self, expression: str) -> list[float]:
        """What an instant query finds.

        Raises:
            ValueError: Prometheus cannot make sense of it.
        """
        answer = self._get("query", query=expression)
        if answer["status"] != "success":
            raise ValueError(f"{expression}: {answer.get('error')}")
        result = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return [float(result[1])]
        return [float(series["value"][1]) for series in result]

    def has_data(self, expression: str) -> bool:
        return any(not math.isnan(value) for value in self.values(expression))

    def label_values(self, metric: str, label: str) -> list[str]:
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})["data"]
        return values

    def targets_up(self) -> int:
        return sum(value == 1 for value in self.values("up"))

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        return answer


@contextlib.contextmanager
def prometheus(directory: Path, targets: Path) -> Iterator[Prometheus]:
    """One that scrapes every second what the file of targets names."""
    program = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if not program:
        pytest.skip("no Prometheus on the path (`apt-get install prometheus`, or PROMETHEUS=/path/to/it)")
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(targets=[str(targets)]))
    port = free_port()
    command = [
        program,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={LOOPBACK}:{port}",
    ]
    process = processes.start("prometheus", command, directory / "prometheus.log", {}, die_with_parent=True)
    running = Prometheus(f"http://{LOOPBACK}:{port}")

    def ready() -> bool:
        assert process.process() is not None, process.log_tail()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{running.url}/-/ready", timeout=5).status_code == httpx.codes.OK
        return False

    try:
        wait_until(ready, "Prometheus is ready")
        yield running
    finally:
        processes.stop([process], STOP_GRACE_S, lambda line: None)
