"""Another router process for the workers of a running cluster, with options of its own."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import grpc

from deploy.local import processes
from deploy.local.ports import free_port
from services.network.address import LOOPBACK
from slos_serve.v1 import inference_pb2
from tests.support.cluster import ClusterUnderTest
from tests.support.eventually import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

STOP_GRACE_S = 10.0


@contextlib.contextmanager
def another_router(
    cluster: ClusterUnderTest,
    directory: Path,
    environment: Mapping[str, str],
    metadata: tuple[tuple[str, str], ...] = (),
) -> Iterator[ClusterUnderTest]:
    """Return the same workers seen through a router that `environment` configures otherwise than the cluster's own.

    Args:
        metadata: what a call has to carry that asks whether the router is ready.
    """
    port = free_port()
    model = cluster.launcher.settings.model
    told = {
        "SLOS_SERVE_REDIS__URL": cluster.launcher.redis_url,
        "SLOS_SERVE_ROUTER__PORT": str(port),
        "SLOS_SERVE_MODEL__PATH": model.path,
        "SLOS_SERVE_MODEL__NAME": model.name,
        **environment,
    }
    command = [sys.executable, "-m", "cli", "router", "--config", str(cluster.launcher.config)]
    process = processes.start("router", command, directory / "router.log", told, die_with_parent=True)
    try:
        with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            seen = ClusterUnderTest(cluster.launcher, f"{LOOPBACK}:{port}", channel, cluster.workers, process)

            def ready() -> bool:
                assert process.process() is not None, process.log_tail()
                with contextlib.suppress(grpc.RpcError):
                    asked = inference_pb2.GetClusterStateRequest()
                    return seen.stub.GetClusterState(asked, timeout=10, metadata=metadata).state.ready
                return False

            wait_until(ready, "the other router is ready")
            yield seen
    finally:
        processes.stop([process], STOP_GRACE_S, lambda line: None)
