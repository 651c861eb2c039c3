"""The worker registry and the heartbeat that keeps a worker in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from services.state.connection import StateConnection
from services.state.registration import Registration
from services.state.registry import WorkerIdTakenError, WorkerRecord, WorkerRecordError, WorkerRegistry, WorkerRole
from tests.support.audit_log import AuditLog
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.redis_server import RedisServer

RECORD = WorkerRecord(
    worker_id="prefill-0",
    role=WorkerRole.PREFILL,
    address="127.0.0.1:4000",
    engine_epoch="epoch-1",
    compatibility={"model_fingerprint": "fingerprint", "dtype": "bfloat16", "block_tokens": 32},
    model="model",
    emulated=False,
)


@pytest_asyncio.fixture
async def connection(redis_url: str) -> AsyncIterator[StateConnection]:
    connection = StateConnection(redis_url, timeout_s=30.0)
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def running(registration: Registration) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(registration.run())
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def eventually_workers(registry: WorkerRegistry, expected: list[WorkerRecord]) -> None:
    async def lists() -> bool:
        return list(await registry.workers()) == expected

    await eventually(lists)


async def test_register_renew_list_remove(connection: StateConnection, redis_prefix: str) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=5)
    other = replace(RECORD, worker_id="decode-0", role=WorkerRole.DECODE, engine_epoch="epoch-2")
    assert await registry.workers() == ()
    assert await registry.put(RECORD)
    assert await registry.put(other)
    draining = replace(RECORD, draining=True)
    assert not await registry.put(draining)
    assert await registry.workers() == (other, draining)
    await registry.remove(RECORD)
    assert await registry.workers() == (other,)


async def test_a_worker_that_stops_renewing_is_forgotten(connection: StateConnection, redis_prefix: str) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=0.1)
    await registry.put(RECORD)
    await eventually_workers(registry, [])
    assert await connection.run(lambda redis: redis.smembers(f"{redis_prefix}:workers")) == set()


async def test_an_id_has_one_living_worker(connection: StateConnection, redis_prefix: str) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=5)
    await registry.put(RECORD)
    second = replace(RECORD, engine_epoch="epoch-2", address="127.0.0.1:4001")
    with pytest.raises(WorkerIdTakenError, match=r"'prefill-0' is taken by the prefill worker at 127\.0\.0\.1:4000"):
        await registry.put(second)
    await registry.remove(second)
    assert await registry.workers() == (RECORD,)


async def test_the_heartbeat_takes_over_the_id_of_a_dead_worker(connection: StateConnection, redis_prefix: str) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=0.2)
    await registry.put(RECORD)
    successor = replace(RECORD, engine_epoch="epoch-2")
    async with running(Registration(registry, successor, heartbeat_s=0.05, patience_s=0.3)):
        await eventually_workers(registry, [successor])


async def test_the_heartbeat_gives_up_an_id_that_is_kept_alive(
    connection: StateConnection, redis_prefix: str, audit_log: AuditLog
) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=0.2)
    elsewhere = replace(RECORD, engine_epoch="epoch-2", address="127.0.0.1:4001")
    intruder = Registration(registry, elsewhere, heartbeat_s=0.05, patience_s=0.3)
    async with running(Registration(registry, RECORD, heartbeat_s=0.05, patience_s=0.3)):
        await eventually_workers(registry, [RECORD])
        with pytest.raises(WorkerIdTakenError):
            await asyncio.wait_for(intruder.run(), 2)
        assert await registry.workers() == (RECORD,)
    assert audit_log.told() == [("registration", "refused", "prefill-0")]


async def test_draining_is_told_at_once(connection: StateConnection, redis_prefix: str) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=60)
    registration = Registration(registry, RECORD, heartbeat_s=30, patience_s=60)
    async with running(registration):
        await eventually_workers(registry, [RECORD])
        registration.drain()
        await eventually_workers(registry, [replace(RECORD, draining=True)])
    await registration.remove()
    assert await registry.workers() == ()


async def test_registers_again_after_redis_came_back_empty(
    redis_server: RedisServer, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    connection = StateConnection(redis_server.url, timeout_s=30.0)
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=5)
    async with running(Registration(registry, RECORD, heartbeat_s=0.05, patience_s=6)):
        await asyncio.sleep(0.15)
        redis_server.start()
        await eventually_workers(registry, [RECORD])
        redis_server.stop()
        await asyncio.sleep(0.15)
        redis_server.start()
        await eventually(lambda: "registered again" in caplog.text)
        await eventually_workers(registry, [RECORD])
    assert caplog.text.count("is unreachable") == 2
    assert caplog.text.count("is back") == 2
    await connection.close()


async def test_a_record_nobody_can_read_is_left_out_and_said_once(
    connection: StateConnection, redis_prefix: str, caplog: pytest.LogCaptureFixture, audit_log: AuditLog
) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=5)
    await registry.put(RECORD)

    async def spoil(redis: object) -> None:
        await redis.set(f"{redis_prefix}:worker:odd", '{"worker_id": "odd"}')  # type: ignore[attr-defined]
        await redis.sadd(f"{redis_prefix}:workers", "odd")  # type: ignore[attr-defined]

    await connection.run(spoil)
    assert await registry.workers() == (RECORD,)
    assert await registry.workers() == (RECORD,)
    assert caplog.text.count("worker odd has a record that cannot be read") == 1
    assert audit_log.told() == [("registration", "refused", "odd")]


async def test_a_record_that_cannot_be_read_is_replaced(connection: StateConnection, redis_prefix: str) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=5)
    await connection.run(lambda redis: redis.set(f"{redis_prefix}:worker:prefill-0", "no JSON"))
    await registry.put(RECORD)
    assert await registry.workers() == (RECORD,)
    await connection.run(lambda redis: redis.set(f"{redis_prefix}:worker:prefill-0", "no JSON"))
    await registry.remove(RECORD)
    assert await registry.workers() == ()


def test_a_record_of_an_older_worker_can_be_read() -> None:
    content = json.loads(replace(RECORD, metrics_address="127.0.0.1:9000").to_json())
    assert WorkerRecord.from_json(json.dumps(content)).metrics_address == "127.0.0.1:9000"
    del content["metrics_address"]
    assert WorkerRecord.from_json(json.dumps(content | {"added_later": 1})) == RECORD


@pytest.mark.parametrize("missing", ["worker_id", "role", "address", "engine_epoch", "compatibility", "model"])
def test_a_record_without_a_fact_is_refused(missing: str) -> None:
    content = json.loads(RECORD.to_json())
    del content[missing]
    with pytest.raises(WorkerRecordError, match=missing):
        WorkerRecord.from_json(json.dumps(content))


class ScriptedRegistry(WorkerRegistry):
    """Answers each heartbeat by the next line of its script: when it comes, and whether another holds the id."""

    def __init__(self, script: list[tuple[float, bool]]) -> None:
        super().__init__(StateConnection("redis://127.0.0.1:1/0", timeout_s=30.0), "test", ttl_s=1.0)
        self.now_s = 0.0
        self.heartbeats: list[WorkerRecord] = []
        self._lines = iter(script)

    async def put(self, record: WorkerRecord) -> bool:
        self.heartbeats.append(record)
        self.now_s, taken = next(self._lines)
        if taken:
            raise WorkerIdTakenError(record.worker_id, replace(record, engine_epoch="another"))
        return False


async def test_patience_with_another_holder_of_the_id_begins_anew_once_the_id_was_ones_own() -> None:
    script = [(1_000.0, True), (1_005.0, False), (1_010.0, True), (1_015.9, True), (1_016.0, True), (1_020.0, False)]
    registry = ScriptedRegistry(script)
    registration = Registration(registry, RECORD, heartbeat_s=0.0, patience_s=6.0, clock=lambda: registry.now_s)
    with pytest.raises(WorkerIdTakenError):
        await registration.run()
    assert len(registry.heartbeats) == 5


async def test_a_drain_is_told_once_and_then_heartbeats_keep_their_interval() -> None:
    registry = ScriptedRegistry([(1_000.0, False)] * 10)
    registration = Registration(registry, RECORD, heartbeat_s=3_600.0, patience_s=6.0, clock=lambda: registry.now_s)
    async with running(registration):
        await eventually(lambda: len(registry.heartbeats) == 1)
        registration.drain()
        assert registration.record.draining
        await eventually(lambda: len(registry.heartbeats) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert [record.draining for record in registry.heartbeats] == [False, True]
