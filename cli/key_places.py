"""The places that keep API keys: a file, or Redis."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from deploy.local.run_directory import read_state, run_directory
from deploy.redis_users import password_file
from services.config.load import ConfigurationError
from services.config.redis import redis_connection
from services.config.settings import RedisSettings, Settings
from services.identity.api_key import ApiKey
from services.identity.key_file import read_keys, write_keys
from services.state.acl import RedisRole, user_name
from services.state.api_keys import ApiKeyStore

T = TypeVar("T")


class KeyPlace(Protocol):
    """A place that keeps API keys."""

    def all(self) -> Mapping[str, ApiKey]:
        """Return all keys by id."""

    def put(self, key: ApiKey) -> None:
        """Keep a key."""

    def remove(self, key_id: str) -> bool:
        """Remove a key. Return False if there is none with this id."""


class KeysInFile:
    """The keys of a file. Commands that run at the same time change it one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()

    def all(self) -> Mapping[str, ApiKey]:
        """Return all keys by id; none if there is no file yet.

        Raises:
            KeyFileError: the file cannot be read, or is no such file.
        """
        return read_keys(self.path) if self.path.exists() else {}

    def put(self, key: ApiKey) -> None:
        """Keep a key.

        Raises:
            KeyFileError: the file cannot be read or written, or there are too many keys.
        """
        with self._alone():
            write_keys(self.path, {**self.all(), key.id: key}.values())

    def remove(self, key_id: str) -> bool:
        """Remove a key. Return False if there is none with this id.

        Raises:
            KeyFileError: the file cannot be read or written.
        """
        with self._alone():
            keys = dict(self.all())
            if keys.pop(key_id, None) is None:
                return False
            write_keys(self.path, keys.values())
            return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for other commands that change the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The file itself is replaced, so that a lock on it would be one on a file that is gone.
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class KeysInRedis:
    """The keys of a cluster in Redis."""

    def __init__(self, options: RedisSettings) -> None:
        self._options = options

    def all(self) -> Mapping[str, ApiKey]:
        """Return all keys by id.

        Raises:
            StateUnavailableError, StateUrlError
        """

        async def read(store: ApiKeyStore) -> Mapping[str, ApiKey]:
            return (await store.changed(None))[1] or {}

        return self._run(read)

    def put(self, key: ApiKey) -> None:
        """Keep a key.

        Raises:
            ApiKeyError: there are too many.
            StateUnavailableError, StateUrlError
        """
        self._run(lambda store: store.put(key))

    def remove(self, key_id: str) -> bool:
        """Remove a key. Return False if there is none with this id.

        Raises:
            StateUnavailableError, StateUrlError
        """
        return self._run(lambda store: store.remove(key_id))

    def _run(self, operation: Callable[[ApiKeyStore], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = redis_connection(self._options, logs_changes=False)
            try:
                return await operation(ApiKeyStore(connection, self._options.prefix))
            finally:
                await connection.close()

        return asyncio.run(run())


def find_place(settings: Settings, file: Path | None, *, redis: bool) -> KeyPlace:
    """Return where keys are kept: where the command line says, or else where the configuration does.

    Raises:
        ConfigurationError: neither says it, or the command line says both.
        RunDirectoryError: what `up` left cannot be read.
    """
    auth = settings.auth
    if file is not None and redis:
        raise ConfigurationError("--file and --redis: name one of them")
    if file is not None or (auth.keys_file is not None and not redis):
        return KeysInFile(file or auth.keys_file or Path())
    if not redis and not auth.keys_in_redis:
        raise ConfigurationError("say --file or --redis, or set auth.keys_file or auth.keys_in_redis")
    return KeysInRedis(settings.redis if settings.redis.url else _of_local_cluster(settings))


def _of_local_cluster(settings: Settings) -> RedisSettings:
    """Return how the Redis of a cluster on this machine is reached with the right to change keys."""
    directory = run_directory(settings.launcher)
    running = read_state(directory)
    if running is None:
        raise ConfigurationError("redis.url is empty, and no cluster runs here whose Redis could be meant")
    password = password_file(directory / "redis", RedisRole.KEYS)
    user = user_name(settings.redis.prefix, RedisRole.KEYS)
    return settings.redis.model_copy(update={"url": running.redis_url, "username": user, "password_file": password})
