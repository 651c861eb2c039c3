"""What `slos-serve status` shows to a caller that is told a part of the state only."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import clusters
from slos_serve.v1 import inference_pb2
from tests.unit.client.scripted import scripted


@pytest.mark.parametrize(
    ("state", "first"),
    [
        (inference_pb2.ClusterState(ready=True, model="smollm2"), ["model smollm2  ready"]),
        (
            inference_pb2.ClusterState(model="[b]", warnings=["no worker is there"]),
            ["model [b]  not ready", "no worker is there"],
        ),
    ],
)
def test_a_client_is_told_what_it_may_know_and_that_there_is_more(
    state: inference_pb2.ClusterState,
    first: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLOS_SERVE_LAUNCHER__RUN_DIR", str(tmp_path))
    with scripted() as router:
        router.state = state
        clusters.status(router.address)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == first
    assert "for operators" in last
