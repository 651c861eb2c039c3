"""Cancellations between routers, over a real Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.state import cancellations
from services.state.cancellations import Cancellations
from services.state.connection import StateConnection, StateUnavailableError
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer


async def test_a_cancellation_reaches_the_router_it_is_for(redis_url: str, redis_prefix: str) -> None:
    connection = StateConnection(redis_url, timeout_s=30.0)
    routers = Cancellations(connection, redis_prefix)
    told: dict[str, list[str]] = {"router-a": [], "router-b": []}
    assert await routers.send("router-a", "too early") is False
    listening = [asyncio.create_task(routers.listen(name, heard.append)) for name, heard in told.items()]

    async def sent(router_id: str) -> bool:
        return await routers.send(router_id, f"for {router_id}")

    await eventually(lambda: sent("router-a"))
    await eventually(lambda: sent("router-b"))
    await eventually(lambda: all(told.values()))
    assert told == {"router-a": ["for router-a"], "router-b": ["for router-b"]}
    assert await Cancellations(connection, f"{redis_prefix}-other").send("router-a", "r") is False
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    await connection.close()


async def test_a_router_listens_again_after_redis_was_away(
    redis_server: RedisServer, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellations, "RETRY_S", 0.02)
    connection = StateConnection(redis_server.url, timeout_s=30.0)
    routers = Cancellations(connection, redis_prefix)
    heard: list[str] = []
    listening = asyncio.create_task(routers.listen("router", heard.append))
    with pytest.raises(StateUnavailableError):
        await routers.send("router", "r")
    redis_server.start()

    async def sent() -> bool:
        return await routers.send("router", "r")

    await eventually(sent)
    await eventually(lambda: heard == ["r"])
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await connection.close()
