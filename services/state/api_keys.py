"""API keys in Redis, where all processes of a cluster find them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import DataError

from services.audit import HOST, EventKind, Outcome, note
from services.faults import read_json
from services.identity.api_key import ApiKey
from services.identity.key_file import MAX_KEYS
from services.state.connection import StateConnection, StateUnavailableError

POLL_S = 1.0
"""Seconds between two looks at Redis: a revoked key is refused after that time."""
READ_ALL_S = 60.0
"""Seconds after which all keys are read though nothing says that one has changed: somebody may have written to Redis by
other means."""

_log = logging.getLogger(__name__)

_PUT = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
return 1
"""
"""Lua script that keeps a key. KEYS are the hash of keys and the mark of its version; ARGV are the id, the key, a new
mark, and the number of keys that there may be. It answers 0 if there are too many."""

_REMOVE = """
local removed = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return removed
"""
"""Lua script that removes a key. KEYS are as above; ARGV are the id and a new mark. It answers 1 if there was one."""


class ApiKeyError(ValueError):
    """A text in Redis is no API key, or there are too many keys."""


_READER = TypeAdapter(ApiKey)


class ApiKeyStore:
    """The API keys of one cluster in Redis."""

    def __init__(self, connection: StateConnection, prefix: str) -> None:
        self._connection = connection
        self._keys = (f"{prefix}:api-keys", f"{prefix}:api-keys:version")

    async def put(self, key: ApiKey) -> None:
        """Keep a key, instead of one with the same id if there is one.

        Raises:
            ApiKeyError: there are as many keys as may be.
            StateUnavailableError
        """
        text = key.model_dump_json(exclude_defaults=True)
        arguments = [key.id, text, secrets.token_hex(8), str(MAX_KEYS)]
        if not await self._connection.evaluate(_PUT, self._keys, arguments):
            raise ApiKeyError(f"at most {MAX_KEYS} keys")

    async def remove(self, key_id: str) -> bool:
        """Remove a key. Return False if there is none with this id.

        Raises:
            StateUnavailableError
        """
        return bool(await self._connection.evaluate(_REMOVE, self._keys, [key_id, secrets.token_hex(8)]))

    async def changed(self, mark: str | None) -> tuple[str, Mapping[str, ApiKey] | None]:
        """Return the mark of the present keys, and the keys by id; None for them if the mark is `mark`.

        What is no key is left out, with a line in the log.

        Raises:
            StateUnavailableError
        """
        hash_key, mark_key = self._keys

        # No script: gateways, which only read keys, are not allowed to run any.
        async def read(redis: Redis) -> tuple[str, list[str] | None]:
            # The mark comes first. Keys that are newer than it are read once more; older ones would be taken for new.
            present = str(await redis.get(mark_key) or "")
            if present == mark:
                return present, None
            if await redis.hlen(hash_key) > MAX_KEYS:
                raise DataError("more API keys than allowed")
            return present, await cast("Awaitable[list[str]]", redis.hvals(hash_key))

        present, texts = await self._connection.run(read)
        return present, None if texts is None else _parsed(texts)


class ApiKeyCache:
    """The API keys of one cluster as one process knows them.

    While Redis is away the keys stay valid for `grace_s`, and are all refused after that: a key that was revoked
    meanwhile must not work for ever.
    """

    def __init__(
        self,
        store: ApiKeyStore,
        grace_s: float,
        *,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.faults = 0
        """Times that the keys could not be read."""
        self._store = store
        self._grace_s = grace_s
        self._poll_s = poll_s
        self._clock = clock
        self._keys: Mapping[str, ApiKey] = {}
        self._mark: str | None = None
        self._read_all_s = self._read_s = clock()

    def find(self, key_id: str) -> ApiKey | None:
        """Return the key with an id; None if there is none, or if Redis has been away for too long."""
        return self._keys.get(key_id) if self._clock() - self._read_s <= self._grace_s else None

    async def run(self) -> None:
        """Read the keys again whenever they have changed, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        """Read the keys if they have changed since the last look. The connection logs that Redis is away."""
        now_s = self._clock()
        everything = self._mark is None or now_s - self._read_all_s >= READ_ALL_S
        try:
            mark, keys = await self._store.changed(None if everything else self._mark)
        except StateUnavailableError:
            self.faults += 1
            return
        if self._mark is not None and mark != self._mark:
            note(EventKind.KEY, Outcome.DONE, "Redis", who=HOST, detail="read again")
        self._read_s, self._mark = now_s, mark
        if keys is not None:
            self._keys, self._read_all_s = keys, now_s


def _parsed(texts: list[str]) -> dict[str, ApiKey]:
    keys: dict[str, ApiKey] = {}
    for text in texts:
        try:
            key = read_json(_READER, text, ApiKeyError)
        except ApiKeyError as error:
            _log.warning("an API key in Redis cannot be read and is left out: %s", error)
        else:
            keys[key.id] = key
    return keys
