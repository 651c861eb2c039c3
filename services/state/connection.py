"""The connection of a process to Redis, with a time limit on every command."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.network.credentials import without_credentials

T = TypeVar("T")

MAX_CONNECTIONS = 8
"""Connections of one process at most. A few suffice, because the hot paths gather what they send."""

_log = logging.getLogger(__name__)


class StateUnavailableError(Exception):
    """Redis cannot be used at this moment."""

    def __init__(self, url: str, detail: str) -> None:
        super().__init__(f"Redis at {url} is unreachable: {detail}")
        self.url = url
        self.detail = detail


class StateTypeError(StateUnavailableError):
    """A key in Redis holds a value of a type that nothing of ours writes; Redis itself answers."""


class StateUrlError(ValueError):
    """The configured URL is not one of Redis."""


@dataclass(frozen=True, slots=True)
class StateTls:
    """The files for connections to a Redis whose URL begins with `rediss://`. All are PEM."""

    ca: Path | None = None
    """Authorities that sign Redis' certificate; None: those that the machine trusts."""
    certificate: Path | None = None
    """Certificate chain that is shown to Redis; None: none."""
    key: Path | None = None


class StateConnection:
    """Runs commands against Redis, and logs when Redis goes and when it comes back.

    `connected` is None before the first command.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        *,
        password: CredentialProvider | None = None,
        tls: StateTls | None = None,
        logs_changes: bool = True,
    ) -> None:
        """Prepare a connection, which is opened with the first command.

        Args:
            password: tells each new connection user and password; None: those in the URL, if any.
            tls: files for an encrypted connection; without them what the machine trusts, and no certificate.
            logs_changes: write a line when Redis goes and when it comes back.

        Raises:
            StateUrlError: `url` is not one of Redis.
        """
        if not url:
            raise StateUrlError(
                "redis.url is empty: a service on its own needs a Redis, for example redis://127.0.0.1:6379/0 "
                "(`slos-serve up` starts one)"
            )
        self.url = without_credentials(url)
        self.connected: bool | None = None
        self.down_since_s: float | None = None
        """Time at which Redis stopped to answer, on the monotonic clock; None while it answers."""
        self._timeout_s = timeout_s
        self._logs_changes = logs_changes
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
                credential_provider=password,
                # No CLIENT SETINFO, which Redis before 7.2 does not know, so that no ACL can allow it for all versions.
                driver_info=None,
                # Whatever somebody put there, what is read is text; it is checked where it is understood.
                encoding_errors="replace",
                # One more try, at once: pooled connections to a Redis that was restarted are all dead.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
                **_tls_arguments(url, tls or StateTls()),
            )
            if pool.connection_class is SSLConnection:
                pool.connection_class = _FreshTlsConnection
            # A parameter that no connection knows would fail the first command; this opens nothing.
            pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError) as error:
            # What a library says of a URL that it cannot read may quote the password.
            if self.url == url:
                raise StateUrlError(f"redis.url {url!r}: {error}") from error
            said = "it cannot be read; in a password, write @ : / ? # as %40 %3A %2F %3F %23"
            raise StateUrlError(f"redis.url {self.url!r}: {said}") from None
        self._redis: Redis = Redis(connection_pool=pool)

    async def run(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        """Run a command and return its result, within `timeout_s`.

        Raises:
            StateUnavailableError: Redis does not answer, or refuses commands.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await operation(self._redis)
        except (TimeoutError, RedisTimeoutError) as error:
            raise self._lost(f"no answer within {self._timeout_s:g} s") from error
        except ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise StateTypeError(self.url, str(error)) from error
            raise self._lost(str(error)) from error
        except (RedisError, OSError) as error:
            raise self._lost(str(error) or type(error).__name__) from error
        self._found()
        return result

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            StateUnavailableError: Redis does not answer.
        """

        async def ping(redis: Redis) -> None:
            await cast("Awaitable[object]", redis.ping())

        await self.run(ping)

    async def evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        """Run a Lua script and return its answer; it costs far less than a pipeline of commands over the same keys.

        Raises:
            StateUnavailableError: Redis does not answer, or refuses commands.
        """

        def run(redis: Redis) -> Awaitable[object]:
            return cast("Awaitable[object]", redis.eval(script, len(keys), *keys, *arguments))

        return await self.run(run)

    async def messages(self, channel: str) -> AsyncIterator[str]:
        """Yield the messages that are published on a channel, while Redis answers. This occupies one connection.

        Raises:
            StateUnavailableError: Redis does not answer, or has stopped to.
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
        """Close all connections."""
        await self._redis.aclose()

    def _lost(self, detail: str) -> StateUnavailableError:
        error = StateUnavailableError(self.url, detail)
        if self.connected is not False:
            self.connected = False
            self.down_since_s = time.monotonic()
            if self._logs_changes:
                _log.warning("%s; retrying", error)
        return error

    def _found(self) -> None:
        if self.connected is False and self.down_since_s is not None and self._logs_changes:
            _log.info("Redis at %s is back after %.1f s", self.url, time.monotonic() - self.down_since_s)
        self.connected = True
        self.down_since_s = None


def _tls_arguments(url: str, tls: StateTls) -> dict[str, Any]:
    """Return what redis-py is told of encryption; an unencrypted connection knows none of it."""
    if not url.startswith("rediss://"):
        return {}
    files = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    named = {name: str(path) for name, path in files.items() if path is not None}
    return {"ssl_check_hostname": True, **named}


class _FreshTlsConnection(SSLConnection):
    """An encrypted connection that reads its files whenever it is opened, so that renewed ones hold for the next time.

    Where authorities are named, only those count, and not the ones that the machine trusts.
    """

    def _connection_arguments(self) -> Mapping[str, Any]:
        context = self.ssl_context
        context.context = None
        if context.ca_certs is not None:
            context.context = ssl.create_default_context(cafile=context.ca_certs)
            if context.certfile is not None:
                context.context.load_cert_chain(context.certfile, context.keyfile)
        return cast("Mapping[str, Any]", super()._connection_arguments())
