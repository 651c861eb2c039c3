"""API keys in Redis, and what a process knows of them while Redis is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import pytest_asyncio

from services.identity.api_key import make_key
from services.identity.principal import Role
from services.state import api_keys
from services.state.api_keys import READ_ALL_S, ApiKeyCache, ApiKeyError, ApiKeyStore
from services.state.connection import StateConnection, StateUnavailableError
from tests.support.audit_log import AuditLog
from tests.unit.services.state.memory_redis import MemoryRedis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.redis_server import RedisServer

_, KEY = make_key("acme", frozenset({Role.CLIENT}), "ci")
_, OTHER = make_key("globex", frozenset({Role.ADMIN}))


@pytest_asyncio.fixture
async def connection(redis_url: str) -> AsyncIterator[StateConnection]:
    connection = StateConnection(redis_url, timeout_s=30.0)
    yield connection
    await connection.close()


class Clock:
    def __init__(self) -> None:
        self.now_s = 700.0

    def __call__(self) -> float:
        return self.now_s


async def test_keys_are_kept_replaced_and_removed(connection: StateConnection, redis_prefix: str) -> None:
    store = ApiKeyStore(connection, redis_prefix)
    none, keys = await store.changed(None)
    assert (none, keys) == ("", {})
    await store.put(KEY)
    await store.put(OTHER)
    mark, keys = await store.changed(none)
    assert keys == {KEY.id: KEY, OTHER.id: OTHER}
    assert await store.changed(mark) == (mark, None)
    renamed = KEY.model_copy(update={"name": "other"})
    await store.put(renamed)
    mark, keys = await store.changed(mark)
    assert keys == {KEY.id: renamed, OTHER.id: OTHER}
    assert await store.remove(KEY.id) is True
    assert await store.remove(KEY.id) is False
    assert (await store.changed(mark))[1] == {OTHER.id: OTHER}
    assert (await ApiKeyStore(connection, f"{redis_prefix}-other").changed(None))[1] == {}


async def test_a_key_that_changes_between_the_reads_is_read_once_more() -> None:
    class Commands:
        mark = "before"
        keys: tuple[str, ...] = ()

        async def get(self, _: str) -> str:
            said, self.mark, self.keys = self.mark, "after", (KEY.model_dump_json(),)
            return said

        async def hlen(self, _: str) -> int:
            return len(self.keys)

        async def hvals(self, _: str) -> list[str]:
            return list(self.keys)

    class Connection(MemoryRedis):
        commands = Commands()

        async def run(self, operation: Callable[[Any], Awaitable[Any]]) -> Any:
            return await operation(self.commands)

    store = ApiKeyStore(Connection(), "p")
    mark, _ = await store.changed(None)
    mark, keys = await store.changed(mark)
    assert (mark, keys) == ("after", {KEY.id: KEY})
    assert await store.changed(mark) == ("after", None)


async def test_there_are_only_so_many_keys(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS", 1)
    store = ApiKeyStore(connection, redis_prefix)
    await store.put(KEY)
    await store.put(KEY)
    with pytest.raises(ApiKeyError, match="at most 1 keys"):
        await store.put(OTHER)
    monkeypatch.setattr(api_keys, "MAX_KEYS", 0)
    with pytest.raises(StateUnavailableError, match="more API keys than allowed"):
        await store.changed(None)


async def test_what_is_no_key_is_left_out(
    connection: StateConnection, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = ApiKeyStore(connection, redis_prefix)
    await store.put(KEY)

    def spoil(redis: object) -> Awaitable[int]:
        fields = {"a": "{", "b": '{"id": 5}', "c": KEY.model_dump_json().replace('"acme"', '"a/b"')}
        return cast("Awaitable[int]", redis.hset(f"{redis_prefix}:api-keys", mapping=fields))  # type: ignore[attr-defined]

    await connection.run(spoil)
    assert (await store.changed(None))[1] == {KEY.id: KEY}
    assert len([record for record in caplog.records if "is left out" in record.message]) == 3
    assert KEY.sha256 not in caplog.text


async def test_a_process_notices_a_change_and_also_one_that_nobody_marked(
    connection: StateConnection, redis_prefix: str, audit_log: AuditLog
) -> None:
    store, clock = ApiKeyStore(connection, redis_prefix), Clock()
    cache = ApiKeyCache(store, grace_s=300, clock=clock)
    assert cache.find(KEY.id) is None
    await store.put(KEY)
    await cache.look()
    assert cache.find(KEY.id) == KEY
    await store.remove(KEY.id)
    await cache.look()
    assert cache.find(KEY.id) is None
    await connection.run(lambda redis: redis.hset(f"{redis_prefix}:api-keys", OTHER.id, OTHER.model_dump_json()))
    await cache.look()
    assert cache.find(OTHER.id) is None
    clock.now_s += READ_ALL_S
    await cache.look()
    assert cache.find(OTHER.id) == OTHER
    assert audit_log.told() == [("key", "done", "Redis")]


async def test_keys_outlive_redis_for_a_while(redis_server: RedisServer, redis_prefix: str) -> None:
    redis_server.start()
    connection, clock = StateConnection(redis_server.url, timeout_s=30.0), Clock()
    store = ApiKeyStore(connection, redis_prefix)
    cache = ApiKeyCache(store, grace_s=300, clock=clock)
    await store.put(KEY)
    await cache.look()
    redis_server.stop()
    clock.now_s += 300
    await cache.look()
    assert (cache.find(KEY.id), cache.faults) == (KEY, 1)
    clock.now_s += 1
    assert cache.find(KEY.id) is None
    redis_server.start()
    await store.put(KEY)
    await cache.look()
    assert cache.find(KEY.id) == KEY
    await connection.close()
