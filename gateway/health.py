"""The health of the cluster, which everybody may ask and which says nothing else about it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slos_serve import Keepalive, Tls
from slos_serve.connection import channel_options

SERVICE = "slos_serve.v1.Inference"
"""Full name of the service that is SERVING while a router has workers for it."""


class ClusterHealth:
    """Asks routers by gRPC's own health protocol, which needs no credential."""

    def __init__(self, routers: Sequence[str], tls: Tls | None) -> None:
        """
        Args:
            tls: how routers are called; None: unencrypted.
        """
        self._routers = tuple(routers)
        self._channels = tuple(_channel(router, tls) for router in routers)

    async def replace_tls(self, tls: Tls) -> None:
        """Ask over new connections from now on; a question under way may remain without an answer."""
        earlier, self._channels = self._channels, tuple(_channel(router, tls) for router in self._routers)
        for channel in earlier:
            await channel.close()

    async def ready(self, timeout_s: float) -> bool | None:
        """Return whether a router takes requests; None if none of them answers within `timeout_s` seconds."""
        asked = [asyncio.create_task(_ask(channel, timeout_s)) for channel in self._channels]
        known: list[bool] = []
        try:
            for answer in asyncio.as_completed(asked):
                ready = await answer
                if ready:
                    return True
                known += [] if ready is None else [ready]
        finally:
            for task in asked:
                task.cancel()
        return False if known else None

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()


async def _ask(channel: grpc.aio.Channel, timeout_s: float) -> bool | None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return None
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(router: str, tls: Tls | None) -> grpc.aio.Channel:
    options = channel_options(router, Keepalive(), tls)
    if tls is None:
        return grpc.aio.insecure_channel(router, options=options)
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    return grpc.aio.secure_channel(router, credentials, options=options)
