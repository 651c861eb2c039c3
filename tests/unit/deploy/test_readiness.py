"""What a launcher makes of a router that does not tell its state to everybody."""

from __future__ import annotations

import os

import psutil
import pytest

from deploy.local import readiness
from deploy.local.errors import ClusterStartError
from deploy.local.processes import RunningProcess
from deploy.local.readiness import Readiness
from deploy.local.run_directory import RunningCluster
from services.rpc import errors as server
from slos_serve import Client, RetryPolicy
from slos_serve.v1 import inference_pb2
from tests.unit.client.scripted import scripted


@pytest.mark.parametrize("error", [server.UnauthenticatedError("who asks?"), server.PermissionDeniedError("may not")])
def test_a_launcher_that_may_not_see_the_state_says_what_it_needs(
    error: server.RequestError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_serves", lambda *_: True)
    own = RunningProcess("router", os.getpid(), psutil.Process().create_time(), "/dev/null")
    with scripted() as router:
        router.state_error = error
        with Client(router.address, retry=RetryPolicy(max_attempts=1)) as client:
            looking = Readiness(client, RunningCluster(router.address, "", (own,)), None)
            with pytest.raises(ClusterStartError, match="SLOS_SERVE_API_KEY") as raised:
                looking.look()
    assert error.detail in str(raised.value)


def test_a_launcher_with_a_client_s_key_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_serves", lambda *_: True)
    own = RunningProcess("router", os.getpid(), psutil.Process().create_time(), "/dev/null")
    with scripted() as router:
        router.state = inference_pb2.ClusterState(model="smollm2")
        with Client(router.address, retry=RetryPolicy(max_attempts=1)) as client:
            looking = Readiness(client, RunningCluster(router.address, "", (own,)), None)
            with pytest.raises(ClusterStartError, match="API key of an operator"):
                looking.look()
