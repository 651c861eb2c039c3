"""A whole cluster whose processes show each other certificates, and somebody who only wrote into its registry."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
import pytest
from typer.testing import CliRunner

from cli.app import app
from deploy.local.certificates import LocalCertificates
from deploy.local.cluster import LocalCluster, running_cluster
from deploy.redis_users import password_file
from services.config.load import load_settings
from services.config.redis import redis_connection
from services.state.acl import RedisRole, user_name
from services.state.registry import WorkerRecord, WorkerRegistry, WorkerRole
from slos_serve import Client, Contract, RetryPolicy, Sampling, Tls, UnreachableError, WorkerHealth
from slos_serve.v1 import worker_pb2, worker_pb2_grpc
from tests.support.eventually import eventually
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster

CONFIG = """
[model]
path = "{directory}/tiny"
[launcher]
run_dir = "{directory}/run"
gateway = true
tls = true
[router]
port = 0
[gateway]
port = 0
[engine]
kind = "emulated"
"""
EASY = Contract.latency(ttft_s=60, tpot_s=60)
SHORT = Sampling(max_tokens=4, ignore_eos=True)
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("mtls")
    write_tiny_model(directory / "tiny")
    config = directory / "cluster.toml"
    config.write_text(CONFIG.format(directory=directory))
    cluster = LocalCluster(load_settings(config), config, die_with_parent=True, report=lambda _line: None)
    with running_cluster(cluster):
        yield cluster


def operator(cluster: LocalCluster) -> Tls:
    shown = certificates(cluster).operator().watched.current()
    return Tls(
        root_certificates=shown.authorities,
        private_key=shown.key,
        certificate_chain=shown.chain,
        server_name="router.local.slos-serve.internal",
    )


def certificates(cluster: LocalCluster) -> LocalCertificates:
    return LocalCertificates(run_dir(cluster) / "certs")


def run_dir(cluster: LocalCluster) -> Path:
    return cluster.settings.launcher.run_dir


def router_address(cluster: LocalCluster) -> str:
    content = json.loads((run_dir(cluster) / "cluster.json").read_text())
    return str(content["router_address"])


def test_clients_gateway_and_commands_are_served(cluster: LocalCluster) -> None:
    address = router_address(cluster)
    with Client(address, tls=operator(cluster)) as client:
        assert len(client.generate("hello", contract=EASY, sampling=SHORT).completion().token_ids) == 4
        state = client.cluster_state()
        assert {worker.health for worker in state.workers} == {WorkerHealth.READY}
        assert not state.warnings
    gateway = json.loads((run_dir(cluster) / "cluster.json").read_text())["gateway_address"]
    answer = httpx.post(
        f"http://{gateway}/v1/completions", json={"prompt": "hello", "max_tokens": 4, "ignore_eos": True}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    outcome = CliRunner().invoke(app, ["status", "--config", str(cluster.config)])
    assert outcome.exit_code == 0, outcome.output
    assert "prefill-0" in outcome.output


def test_nobody_without_a_certificate_of_the_cluster_calls_router_or_worker(cluster: LocalCluster) -> None:
    ca = (certificates(cluster).directory / "ca.pem").read_bytes()
    bare = Tls(root_certificates=ca, server_name="router.local.slos-serve.internal")
    for tls in (None, bare):
        with Client(router_address(cluster), tls=tls, retry=ONCE) as client, pytest.raises(UnreachableError):
            client.cluster_state(timeout_s=5)


@dataclass
class Rogue(worker_pb2_grpc.WorkerServicer):
    """A process that registered itself, and takes whatever is sent to it."""

    heard: list[Any] = field(default_factory=list)

    async def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for message in request_iterator:
            self.heard.append(message)
            yield worker_pb2.SessionResponse()


def test_whoever_registers_without_a_workers_certificate_gets_no_work(cluster: LocalCluster) -> None:
    asyncio.run(_rogue_story(cluster))


async def _rogue_story(cluster: LocalCluster) -> None:
    """The rogue knows the password that workers have for Redis, and registers beside them."""
    rogue, server = Rogue(), grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(rogue, server)
    plain = server.add_insecure_port("127.0.0.1:0")
    # The most that it could have stolen: a client's certificate.
    files = certificates(cluster).operator().credentials()
    secure = server.add_secure_port("127.0.0.1:0", files)
    await server.start()
    redis = cluster.settings.redis
    stolen = redis.model_copy(
        update={
            "url": json.loads((run_dir(cluster) / "cluster.json").read_text())["redis_url"],
            "username": user_name(redis.prefix, RedisRole.WORKER),
            "password_file": password_file(run_dir(cluster) / "redis", RedisRole.WORKER),
        }
    )
    connection = redis_connection(stolen)
    registry = WorkerRegistry(connection, redis.prefix, 300.0)
    try:
        for worker_id, port in (("rogue-plain", plain), ("rogue-operator", secure)):
            record = WorkerRecord(
                worker_id, WorkerRole.DECODE, f"127.0.0.1:{port}", "epoch", {}, cluster.settings.model.name, True
            )
            await registry.put(record)

        def both_refused() -> bool:
            with Client(router_address(cluster), tls=operator(cluster)) as client:
                said = "\n".join(client.cluster_state().warnings)
            return "rogue-plain gets no work: it does not speak TLS" in said and "rogue-operator gets no work" in said

        await eventually(lambda: asyncio.to_thread(both_refused))
        for _ in range(8):
            await asyncio.to_thread(_generate, cluster)
        assert rogue.heard == [], "neither a prompt nor a greeting"
    finally:
        await connection.close()
        await server.stop(0)


def _generate(cluster: LocalCluster) -> None:
    with Client(router_address(cluster), tls=operator(cluster)) as client:
        assert len(client.generate("secret", contract=EASY, sampling=SHORT).completion().token_ids) == 4


def test_kv_caches_are_handed_over_between_workers_that_show_certificates(cluster: LocalCluster) -> None:
    with Client(router_address(cluster), tls=operator(cluster)) as client:
        for _ in range(3):
            finished = client.generate("hello " * 50, contract=EASY, sampling=SHORT).completion().finished
            assert finished.kv_recomputes == 0
            assert finished.kv_pull is not None
            assert finished.kv_pull.kv_bytes > 0
