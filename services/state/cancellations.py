"""Cancellations of requests that another router of the cluster serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from redis.asyncio import Redis

from services.state.connection import StateConnection, StateUnavailableError

RETRY_S = 0.5


class Cancellations:
    """Every router listens on a channel of its own; it need not have the request any more when it is told."""

    def __init__(self, connection: StateConnection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix

    async def send(self, router_id: str, request_id: str) -> bool:
        """Ask a router to cancel a request. False if that router does not listen: it is gone, and the request with it.

        Raises:
            StateUnavailableError
        """

        async def publish(redis: Redis) -> int:
            return int(await redis.publish(self._channel(router_id), request_id))

        return await self._connection.run(publish) > 0

    async def listen(self, router_id: str, cancel: Callable[[str], object]) -> None:
        """Carry out what others ask this router for, until cancelled. While Redis is away nobody can ask."""
        while True:
            # The connection says so, once, when Redis goes.
            with contextlib.suppress(StateUnavailableError):
                async for request_id in self._connection.messages(self._channel(router_id)):
                    cancel(request_id)
            await asyncio.sleep(RETRY_S)

    def _channel(self, router_id: str) -> str:
        return f"{self._prefix}:cancel:{router_id}"
