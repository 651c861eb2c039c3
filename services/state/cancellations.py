"""Cancellations of requests that another router of the cluster serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from redis.asyncio import Redis

from services.state.connection import StateConnection, StateUnavailableError

RETRY_S = 0.5
"""Seconds until a lost subscription is tried again."""


class Cancellations:
    """Sends cancellations to other routers, and receives those for this router.

    Each router listens on a channel of its own. A request may have ended by the time its cancellation arrives.
    """

    def __init__(self, connection: StateConnection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix

    async def send(self, router_id: str, request_id: str) -> bool:
        """Ask a router to cancel a request. Return False if that router is gone, and its request with it.

        Raises:
            StateUnavailableError
        """

        async def publish(redis: Redis) -> int:
            return int(await redis.publish(self._channel(router_id), request_id))

        return await self._connection.run(publish) > 0

    async def listen(self, router_id: str, cancel: Callable[[str], object]) -> None:
        """Cancel what other routers ask this router to cancel, until cancelled itself.

        While Redis is away, no router can ask.

        Args:
            cancel: called with the id of a request.
        """
        while True:
            # The connection logs the loss of Redis, once.
            with contextlib.suppress(StateUnavailableError):
                async for request_id in self._connection.messages(self._channel(router_id)):
                    cancel(request_id)
            await asyncio.sleep(RETRY_S)

    def _channel(self, router_id: str) -> str:
        return f"{self._prefix}:cancel:{router_id}"
