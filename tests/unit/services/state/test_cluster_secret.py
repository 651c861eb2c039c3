"""The secret that routers share, over a real Redis."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from services.state import cluster_secret
from services.state.cluster_secret import ClusterSecret
from services.state.connection import StateConnection, StateUnavailableError
from tests.support.eventually import eventually
from tests.unit.services.state.memory_redis import MemoryRedis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def connection(redis_url: str) -> AsyncIterator[StateConnection]:
    connection = StateConnection(redis_url, timeout_s=30.0)
    yield connection
    await connection.close()


async def test_all_routers_agree_on_one_secret(connection: StateConnection, redis_prefix: str) -> None:
    routers = [ClusterSecret(connection, redis_prefix, "a") for _ in range(5)]
    assert len({router.value() for router in routers}) == 5, "before they have spoken to Redis"
    await asyncio.gather(*(router.agree() for router in routers))
    (secret,) = {router.value() for router in routers}
    assert len(secret) == 32
    later = ClusterSecret(connection, redis_prefix, "a")
    await later.agree()
    assert later.value() == secret
    other = ClusterSecret(connection, redis_prefix, "b")
    await other.agree()
    assert other.value() != secret


async def test_a_redis_that_lost_its_data_is_given_the_secret_again(
    connection: StateConnection, redis_prefix: str
) -> None:
    first, second = (ClusterSecret(connection, redis_prefix, "a") for _ in range(2))
    await first.agree()
    await connection.run(lambda redis: redis.delete(f"{redis_prefix}:secret:a"))
    await second.agree()
    await first.agree()
    assert first.value() == second.value()


@pytest.mark.parametrize("garbage", ["", "x", "0" * 63, "G" * 64, "0" * 65, "é" * 32, "0" * 63 + "\n"])
async def test_what_is_no_secret_is_replaced(connection: StateConnection, redis_prefix: str, garbage: str) -> None:
    key = f"{redis_prefix}:secret:a"
    await connection.run(lambda redis: redis.set(key, garbage))
    await _two_agree(connection, redis_prefix)


async def test_a_value_of_another_type_is_replaced(connection: StateConnection, redis_prefix: str) -> None:
    await connection.evaluate("redis.call('SADD', KEYS[1], 'a')", [f"{redis_prefix}:secret:a"], [])
    await _two_agree(connection, redis_prefix)


async def _two_agree(connection: StateConnection, prefix: str) -> None:
    routers = [ClusterSecret(connection, prefix, "a") for _ in range(2)]
    for router in routers:
        await router.agree()
    assert routers[0].value() == routers[1].value()


async def test_without_redis_a_router_has_its_own_until_redis_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(cluster_secret, "RETRY_S", 0.001)
    shared = "ab" * 32

    class Answering(MemoryRedis):
        asked = 0

        async def evaluate(self, script: str, keys: object, arguments: object) -> object:
            self.asked += 1
            if self.away:
                raise StateUnavailableError(self.url, "away")
            return shared

    redis = Answering()
    redis.away = True
    secret = ClusterSecret(redis, "p", "a")
    own = secret.value()
    running = asyncio.create_task(secret.run())
    await eventually(lambda: redis.asked > 2)
    assert secret.value() == own
    redis.away = False
    await eventually(lambda: secret.value() == bytes.fromhex(shared))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert shared not in caplog.text
    assert own.hex() not in caplog.text
