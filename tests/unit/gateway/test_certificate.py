"""A gateway whose certificate is replaced while a stream runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gateway.certificate import follow_certificate
from services.config.tls import member_tls
from services.identity.peer import PeerRole
from services.rpc.server import RpcServer
from slos_serve import AsyncClient, RetryPolicy, Tls
from slos_serve.v1 import inference_pb2, inference_pb2_grpc
from tests.support.cluster_certificates import ClusterCertificates
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ONCE = RetryPolicy(max_attempts=1)


class Router(inference_pb2_grpc.InferenceServicer):
    """Notes the certificates of its callers, and streams a token when a test says so."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []
        self.go_on = asyncio.Event()

    async def GetClusterState(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.shown += context.auth_context()["x509_pem_cert"]
        return inference_pb2.GetClusterStateResponse()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield inference_pb2.GenerateResponse(tokens=inference_pb2.TokenChunk(text="a"))
        await self.go_on.wait()
        yield inference_pb2.GenerateResponse(tokens=inference_pb2.TokenChunk(text="b"))

    async def Quote(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def WatchClusterState(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        raise NotImplementedError
        yield


async def test_the_next_call_shows_the_new_certificate_and_a_stream_goes_on(tmp_path: Path) -> None:
    ours = ClusterCertificates.create(tmp_path / "ours")
    gateway = ours.tls(PeerRole.GATEWAY)
    router, server = Router(), RpcServer(["slos_serve.v1.Inference"], 1 << 20, with_reflection=False)
    inference_pb2_grpc.add_InferenceServicer_to_server(router, server.grpc)
    port = server.bind("127.0.0.1", 0, ours.tls(PeerRole.ROUTER, "r1"))
    await server.start()
    client = AsyncClient(f"127.0.0.1:{port}", tls=member_tls(gateway), retry=ONCE)
    following = asyncio.create_task(follow_certificate(gateway, [client], interval_s=0.01))
    try:
        await client.cluster_state()
        stream = client.generate("hello")
        first: Any = await anext(stream)

        renewed = ours.issue(PeerRole.GATEWAY).path.read_bytes()

        async def is_shown() -> bool:
            await client.cluster_state()
            return router.shown[-1] == renewed

        await eventually(is_shown)
        assert router.shown[0] != renewed
        router.go_on.set()
        second: Any = await anext(stream)
        assert (first.text, second.text) == ("a", "b")
        for _ in range(6):
            await client.replace_tls(member_tls(gateway))
            await client.cluster_state()
        assert router.shown[-1] == renewed
    finally:
        following.cancel()
        await client.close()
        await server.stop(0)


async def test_a_client_without_tls_gets_none_later() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="without TLS"):
            await client.replace_tls(Tls())
