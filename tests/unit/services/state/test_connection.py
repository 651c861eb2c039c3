"""The connection to Redis: bounded in time, typed errors, one log line for each change."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

import pytest

from deploy.local.ports import free_port
from services.state.connection import StateConnection, StateUnavailableError, StateUrlError
from tests.support.eventually import PATIENCE_S

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer


async def test_says_once_that_redis_went_and_once_that_it_is_back(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    connection = StateConnection(redis_server.url, timeout_s=PATIENCE_S)
    for _ in range(3):
        with pytest.raises(StateUnavailableError, match=r"Redis at redis://127.0.0.1:\d+/0 is unreachable"):
            await connection.ping()
    assert (connection.connected, connection.down_since_s is None) == (False, False)
    redis_server.start()
    for _ in range(3):
        await connection.ping()
    assert (connection.connected, connection.down_since_s) == (True, None)
    lines = [record.getMessage() for record in caplog.records]
    assert [("unreachable" in line, "is back" in line) for line in lines] == [(True, False), (False, True)]
    await connection.close()


async def test_a_restart_of_redis_is_not_noticed(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    redis_server.start()
    connection = StateConnection(redis_server.url, timeout_s=PATIENCE_S)
    await connection.ping()
    redis_server.stop()
    redis_server.start()
    await connection.ping()
    assert not caplog.records
    await connection.close()


async def test_a_redis_that_does_not_answer_costs_the_timeout_and_no_more() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        connection = StateConnection(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StateUnavailableError, match=r"no answer within 0\.2 s"):
                await connection.ping()
        await connection.close()


async def test_refusals_of_redis_are_typed(redis_url: str, redis_prefix: str) -> None:
    connection = StateConnection(redis_url, timeout_s=PATIENCE_S)

    async def confuse_types(redis: object) -> None:
        await redis.set(redis_prefix, "text")  # type: ignore[attr-defined]
        await redis.lpush(redis_prefix, "item")  # type: ignore[attr-defined]

    with pytest.raises(StateUnavailableError, match="WRONGTYPE"):
        await connection.run(confuse_types)
    await connection.close()


async def test_passwords_stay_out_of_messages() -> None:
    connection = StateConnection(f"redis://user:secret@127.0.0.1:{free_port()}/0", timeout_s=PATIENCE_S)
    with pytest.raises(StateUnavailableError) as raised:
        await connection.ping()
    assert "secret" not in str(raised.value)
    assert "user:***@127.0.0.1" in str(raised.value)
    await connection.close()


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:6379", "http://127.0.0.1", "redis://127.0.0.1:port", "redis://[::1", "redis://h/0?colour=red"],
)
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(StateUrlError, match=r"redis\.url"):
        StateConnection(url, timeout_s=1.0)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2",
        "redis://app:hunter#2@127.0.0.1:6379/0",
        "redis://[:hunter2@127.0.0.1",
        "hunter2@127.0.0.1:6379",
        "redis://127.0.0.1:6379/0?passwd=hunter2",
    ],
)
async def test_what_is_said_of_a_url_that_is_none_quotes_no_password(url: str) -> None:
    with pytest.raises(StateUrlError, match=r"redis\.url") as raised:
        StateConnection(url, timeout_s=1.0)
    assert "hunter" not in str(raised.value)
    assert raised.value.__cause__ is None


async def test_a_command_can_be_cancelled_at_every_step(redis_url: str) -> None:
    connection = StateConnection(redis_url, timeout_s=PATIENCE_S)
    await connection.ping()
    for steps in range(15):
        task = asyncio.create_task(connection.ping())
        for _ in range(steps):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled(), f"after {steps} steps"
    await connection.close()
