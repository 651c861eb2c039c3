"""The process's connection to Redis: bounded in time, and the one place that says when Redis goes and comes back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

T = TypeVar("T")

MAX_CONNECTIONS = 8

_log = logging.getLogger(__name__)


class StateUnavailableError(Exception):
    """Redis cannot be used at this moment."""

    def __init__(self, url: str, detail: str) -> None:
        super().__init__(f"Redis at {url} is unreachable: {detail}")
        self.url = url
        self.detail = detail


class StateUrlError(ValueError):
    """The URL of Redis makes no sense."""


def without_password(url: str) -> str:
    """The same URL, fit for a log."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    netloc = f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc))


class StateConnection:
    """Runs commands against Redis and knows whether it is there.

    `connected` is None until the first command.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        """
        Raises:
            StateUrlError: not a URL of Redis.
        """
        if not url:
            raise StateUrlError(
                "redis.url is empty: a service on its own needs a Redis, for example redis://127.0.0.1:6379/0 "
                "(`slos-serve up` starts one)"
            )
        self.url = without_password(url)
        self.connected: bool | None = None
        self.down_since_s: float | None = None
        """On the monotonic clock; None while Redis answers."""
        self._timeout_s = timeout_s
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=timeout_s,
                # No socket_timeout: `run` bounds the whole command, and with one redis-py writes through
                # asyncio.wait_for, which in Python 3.11 swallows a cancellation that meets the end of its work.
                socket_timeout=None,
                socket_connect_timeout=timeout_s,
                decode_responses=True,
                # One more try, at once: pooled connections to a Redis that was restarted are all dead.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )
        except (ValueError, TypeError) as error:
            raise StateUrlError(f"redis.url {self.url!r}: {error}") from error
        self._redis: Redis = Redis(connection_pool=pool)

    async def run(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        """The result of a command, within `timeout_s`.

        Raises:
            StateUnavailableError: Redis does not answer, or refuses commands.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await operation(self._redis)
        except (TimeoutError, RedisTimeoutError) as error:
            raise self._lost(f"no answer within {self._timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            raise self._lost(str(error) or type(error).__name__) from error
        self._found()
        return result

    async def ping(self) -> None:
        """
        Raises:
            StateUnavailableError: Redis does not answer.
        """

        async def ping(redis: Redis) -> None:
            await cast("Awaitable[object]", redis.ping())

        await self.run(ping)

    async def evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        """What a Lua script answers. One script over many keys costs this process far less than a pipeline of commands.

        Raises:
            StateUnavailableError: Redis does not answer, or refuses commands.
        """
        return await self.run(lambda redis: cast("Awaitable[object]", redis.eval(script, len(keys), *keys, *arguments)))

    async def messages(self, channel: str) -> AsyncIterator[str]:
        """What is published on a channel from now on, for as long as Redis answers; holds a connection.

        Raises:
            StateUnavailableError: Redis is away, or went.
        """
        subscription = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            await subscription.subscribe(channel)
            async for message in subscription.listen():
                yield str(message["data"])
        except (RedisError, OSError) as error:
            raise self._lost(str(error) or type(error).__name__) from error
        finally:
            await subscription.aclose()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._redis.aclose()

    def _lost(self, detail: str) -> StateUnavailableError:
        error = StateUnavailableError(self.url, detail)
        if self.connected is not False:
            self.connected = False
            self.down_since_s = time.monotonic()
            _log.warning("%s; retrying", error)
        return error

    def _found(self) -> None:
        if self.connected is False and self.down_since_s is not None:
            _log.info("Redis at %s is back after %.1f s", self.url, time.monotonic() - self.down_since_s)
        self.connected = True
        self.down_since_s = None
