"""Values in Redis that nothing of ours wrote hurt nobody but what they stand for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from services.state.connection import StateConnection
from services.state.journal import RequestJournal
from services.state.journal_entry import JournalEntry, JournalEntryError, reservation_of
from services.state.registry import WorkerIdTakenError, WorkerRecord, WorkerRegistry, WorkerRole
from tests.support.eventually import eventually

RECORD = WorkerRecord(
    worker_id="decode-0",
    role=WorkerRole.DECODE,
    address="127.0.0.1:4000",
    engine_epoch="epoch-1",
    compatibility={"dtype": "bfloat16", "block_tokens": 32},
    model="model",
    emulated=False,
)
OTHER = replace(RECORD, worker_id="prefill-0", role=WorkerRole.PREFILL, address="127.0.0.1:4001")
Spoil = Callable[[Any, str], Awaitable[object]]


@pytest_asyncio.fixture
async def connection(redis_url: str) -> AsyncIterator[StateConnection]:
    connection = StateConnection(redis_url, timeout_s=30.0)
    yield connection
    await connection.close()


def changed(**changes: object) -> str:
    return json.dumps({**json.loads(RECORD.to_json()), **changes})


TEXTS: list[str | bytes] = [
    "garbage",
    "",
    b"\xff\xfe\x80\x00",
    "5",
    "null",
    "true",
    '"text"',
    "[]",
    "[1, 2]",
    "{}",
    "[" * 10_000,
    "9" * 5_000,
    changed(worker_id=["x"]),
    changed(worker_id=None),
    changed(worker_id="prefill-0"),
    changed(address=5),
    changed(engine_epoch=["x"]),
    changed(engine_epoch={}),
    changed(engine_epoch=7),
    changed(role="king"),
    changed(compatibility=[]),
    changed(compatibility={"dtype": []}),
    changed(draining="yes"),
    changed(model=None),
]
IDS = [str(text)[:24] if len(text) < 40 or not isinstance(text, str) else text[-60:] for text in TEXTS]


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
async def test_a_record_that_makes_no_sense_is_left_out_and_its_worker_puts_its_own_back(
    connection: StateConnection, redis_prefix: str, text: str | bytes
) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=30)
    await registry.put(RECORD)
    await registry.put(OTHER)
    await connection.run(lambda redis: redis.set(f"{redis_prefix}:worker:decode-0", text, px=30_000))
    assert await registry.workers() == (OTHER,)
    await registry.put(RECORD)
    assert await registry.workers() == (RECORD, OTHER)
    await connection.run(lambda redis: redis.set(f"{redis_prefix}:worker:decode-0", text, px=30_000))
    await registry.remove(RECORD)


async def test_values_of_other_types_are_replaced(connection: StateConnection, redis_prefix: str) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=30)

    async def spoil(redis: Any) -> None:
        await redis.delete(f"{redis_prefix}:workers", f"{redis_prefix}:worker:decode-0")
        await redis.set(f"{redis_prefix}:workers", "x")
        await redis.lpush(f"{redis_prefix}:worker:decode-0", "x")

    await connection.run(spoil)
    await registry.put(RECORD)
    assert await registry.workers() == (RECORD,)
    await connection.run(spoil)
    await registry.remove(RECORD)
    await registry.put(OTHER)
    assert await registry.workers() == (OTHER,)


async def test_an_index_with_a_member_that_is_no_text_hides_no_worker(
    connection: StateConnection, redis_prefix: str
) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=30)
    await registry.put(RECORD)
    await connection.run(lambda redis: redis.sadd(f"{redis_prefix}:workers", b"\xff\xfe", "ghost", ""))
    assert await registry.workers() == (RECORD,)


async def test_an_id_is_taken_by_a_record_that_another_worker_keeps_alive_only(
    connection: StateConnection, redis_prefix: str
) -> None:
    registry = WorkerRegistry(connection, redis_prefix, ttl_s=30)
    key = f"{redis_prefix}:worker:decode-0"
    other = replace(RECORD, engine_epoch="epoch-2", address="10.0.0.2:4000").to_json()
    await connection.run(lambda redis: redis.set(key, other, px=30_000))
    with pytest.raises(WorkerIdTakenError, match=r"10\.0\.0\.2"):
        await registry.put(RECORD)
    # No worker writes a record that never expires.
    await connection.run(lambda redis: redis.set(key, other))
    await registry.put(RECORD)
    # No other worker can be at this worker's own address.
    await connection.run(lambda redis: redis.set(key, changed(engine_epoch="epoch-2"), px=30_000))
    await registry.put(RECORD)
    assert await registry.workers() == (RECORD,)


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
async def test_a_journal_entry_that_makes_no_sense_keeps_its_id_taken_and_nothing_else(
    connection: StateConnection, redis_prefix: str, text: str | bytes
) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60)
    await connection.run(lambda redis: redis.set(f"{redis_prefix}:request:odd", text))
    odd, even = await asyncio.gather(journal.reserve("odd", "router"), journal.reserve("even", "router"))
    assert (odd, even) == (False, True)
    assert await journal.read("odd") is None


async def test_a_journal_entry_of_another_type_keeps_its_id_taken_and_nothing_else(
    connection: StateConnection, redis_prefix: str
) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60)
    await connection.run(lambda redis: redis.lpush(f"{redis_prefix}:request:odd", "x"))
    odd, even = await asyncio.gather(journal.reserve("odd", "router"), journal.reserve("even", "router"))
    assert (odd, even) == (False, True)
    assert await journal.read("odd") is None
    assert connection.connected, "Redis answers; it is one value that makes no sense"


def test_an_entry_is_read_as_it_was_written_and_says_who_reserved_it() -> None:
    entry = JournalEntry("r", "router-0", attempt=2)
    text = entry.to_json("mark")
    assert (JournalEntry.from_json(text), reservation_of(text)) == (entry, "mark")
    with pytest.raises(JournalEntryError, match="attempt"):
        JournalEntry.from_json(json.dumps({**json.loads(text), "attempt": "2"}))


async def test_an_id_is_free_again_when_its_client_leaves_while_it_is_reserved(
    connection: StateConnection, redis_prefix: str
) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60)
    journal.start()
    reserving = asyncio.create_task(journal.reserve("r", "router-0"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reserving.cancel()
    assert isinstance((await asyncio.gather(reserving, return_exceptions=True))[0], asyncio.CancelledError)
    elsewhere = RequestJournal(connection, redis_prefix, ttl_s=60)

    async def free() -> bool:
        key = f"{redis_prefix}:request:r"
        return not await connection.run(lambda redis: redis.exists(key)) and await elsewhere.reserve("r", "router-1")

    await eventually(lambda: bool(journal._abandoned) or not journal._unique_keys._wanted)
    await eventually(free)
    await journal.close()
