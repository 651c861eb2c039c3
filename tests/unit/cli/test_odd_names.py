"""Names that people choose are shown as they are, also where they look like the marks of styled text."""

from __future__ import annotations

import pytest

from cli import clusters, generate
from slos_serve.cluster import cluster_state_from_wire
from slos_serve.events import event_from_wire
from slos_serve.v1 import inference_pb2
from tests.unit.client.scripted import finished

ODD = "[/b] [bold]x[/]"


def test_the_state_of_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    state = inference_pb2.ClusterState(router_id=f"r{ODD}", model=f"m{ODD}", warnings=[f"w{ODD}"])
    state.console_url = "http://[fd00::7]:8001/"
    state.workers.add(worker_id=f"p{ODD}", detail=f"d{ODD}", role=inference_pb2.WORKER_ROLE_PREFILL)
    state.tenants.add(
        tenant=f"t{ODD}",
        limits=[inference_pb2.RateLimit(quota="requests_per_s", limit=5.0, remaining=3.4, reset_s=1.6)],
    )
    clusters._show(cluster_state_from_wire(state))
    shown = capsys.readouterr().out
    for name in ("r", "m", "w", "p", "d", "t"):
        assert f"{name}{ODD}" in shown
    assert "http://[fd00::7]:8001/" in shown
    (quota,) = (line for line in shown.splitlines() if "requests_per_s" in line)
    assert [cell.strip() for cell in quota.split("│")[3:6]] == ["3", "5", "1.6 s"]


def test_the_end_of_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    event = event_from_wire(finished(2))
    assert event is not None
    generate._show(event, f"id{ODD}", promised=True)
    assert f"id{ODD}: 2 tokens" in capsys.readouterr().err
