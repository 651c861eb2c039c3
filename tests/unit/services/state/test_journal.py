"""The request journal: reservation, coalesced writes, outages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from services.state import unique_keys
from services.state.connection import StateConnection, StateUnavailableError
from services.state.journal import MOST_TOGETHER, RequestJournal, UnknownEntryError
from services.state.journal_entry import JournalEntry, RequestState
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.support.redis_server import RedisServer


@pytest_asyncio.fixture
async def connection(redis_url: str) -> AsyncIterator[StateConnection]:
    connection = StateConnection(redis_url, timeout_s=30.0)
    yield connection
    await connection.close()


async def commands_processed(connection: StateConnection) -> int:
    info = await connection.run(lambda redis: redis.info("stats"))
    return int(info["total_commands_processed"])


async def left_ms(connection: StateConnection, prefix: str) -> int:
    """Return how long Redis will keep the entry of request `r`."""
    left: int = await connection.run(lambda redis: redis.pttl(f"{prefix}:request:r"))
    return left


async def eventually_reads(journal: RequestJournal, expected: JournalEntry) -> None:
    async def reads() -> bool:
        return await journal.read(expected.request_id) == expected

    await eventually(reads)


async def test_an_id_is_reserved_once_in_the_cluster(connection: StateConnection, redis_prefix: str) -> None:
    here = RequestJournal(connection, redis_prefix, ttl_s=60)
    there = RequestJournal(connection, redis_prefix, ttl_s=60)
    assert await here.reserve("r1", "router-0")
    assert not await here.reserve("r1", "router-0")
    assert not await there.reserve("r1", "router-1")
    assert await there.reserve("r2", "router-1")
    assert await there.read("r1") == JournalEntry("r1", "router-0")


async def test_a_hundred_concurrent_reservations_have_one_winner(
    connection: StateConnection, redis_prefix: str
) -> None:
    journals = [RequestJournal(connection, redis_prefix, ttl_s=60) for _ in range(100)]
    won = await asyncio.gather(*(journal.reserve("r", f"router-{n}") for n, journal in enumerate(journals)))
    assert won.count(True) == 1


async def test_a_finished_id_stays_taken_until_it_expires(connection: StateConnection, redis_prefix: str) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60)
    assert await journal.reserve("r", "router-0")
    journal.update("r", state=RequestState.DONE, tokens_delivered=3)
    await journal.close()
    assert await journal.read("r") == JournalEntry("r", "router-0", RequestState.DONE, tokens_delivered=3)
    assert not await journal.reserve("r", "router-0")
    assert 0 < await left_ms(connection, redis_prefix) <= 60_000
    await connection.run(lambda redis: redis.pexpire(f"{redis_prefix}:request:r", 1))
    await eventually(lambda: journal.reserve("r", "router-0"))


async def test_a_reserved_id_expires_with_its_router(connection: StateConnection, redis_prefix: str) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60)
    assert await journal.reserve("r", "router-0")
    assert 0 < await left_ms(connection, redis_prefix) <= 60_000


async def test_a_thousand_updates_cost_one_command_per_request(connection: StateConnection, redis_prefix: str) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60)
    journal.start()
    for name in ("a", "b"):
        await journal.reserve(name, "router-0")
    before = await commands_processed(connection)
    for tokens in range(500):
        for name in ("a", "b"):
            journal.update(name, state=RequestState.DECODING, tokens_delivered=tokens + 1)
    await eventually(lambda: journal.flushes)
    after = await commands_processed(connection)
    assert journal.flushes == 1
    # Two SETs in one script, and the INFO itself.
    assert after - before == 4
    assert await journal.read("b") == JournalEntry("b", "router-0", RequestState.DECODING, tokens_delivered=500)
    await journal.close()


async def test_flushes_are_apart(connection: StateConnection, redis_prefix: str) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60, flush_interval_s=0.05)
    journal.start()
    await journal.reserve("r", "router-0")
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    tokens = 0
    while journal.flushes < 5:
        tokens += 1
        journal.update("r", tokens_delivered=tokens)
        await asyncio.sleep(0.001)
    assert loop.time() - began_s >= 4 * 0.05, "between five there are four intervals"
    await journal.close()
    entry = await journal.read("r")
    assert entry is not None
    assert entry.tokens_delivered == tokens


async def test_placement_and_restarts_are_kept(connection: StateConnection, redis_prefix: str) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60)
    await journal.reserve("r", "router-0")
    journal.update("r", state=RequestState.PREFILLING, prefill_worker_id="p", prefill_engine_epoch="e1")
    journal.update("r", state=RequestState.HANDOVER, decode_worker_id="d", decode_engine_epoch="e2", attempt=1)
    journal.update("r", state=RequestState.FAILED)
    await journal.close()
    assert await journal.read("r") == JournalEntry("r", "router-0", RequestState.FAILED, 1, "p", "e1", "d", "e2", 0)
    with pytest.raises(UnknownEntryError):
        journal.update("r", tokens_delivered=1)
    assert journal.live_entries == 0


async def test_a_waiting_request_keeps_its_id(connection: StateConnection, redis_prefix: str) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=0.3)
    await journal.reserve("r", "router-0")
    # Longer than the journal gives it, so that only being written again can have shortened it.
    await connection.run(lambda redis: redis.set(f"{redis_prefix}:request:r", "{}", px=60_000))
    journal.start()

    async def written_again() -> bool:
        return await left_ms(connection, redis_prefix) <= 300

    await eventually(written_again)
    await journal.close()


async def test_an_outage_loses_nothing_that_fits_the_buffer(redis_server: RedisServer, redis_prefix: str) -> None:
    redis_server.start()
    connection = StateConnection(redis_server.url, timeout_s=30.0)
    journal = RequestJournal(connection, redis_prefix, ttl_s=60, retry_interval_s=0.05)
    journal.start()
    assert await journal.reserve("before", "router-0")
    redis_server.stop()
    with pytest.raises(StateUnavailableError):
        await journal.reserve("during", "router-0")
    assert journal.track("during", "router-0")
    assert not journal.track("during", "router-0")
    for tokens in range(100):
        journal.update("before", state=RequestState.DECODING, tokens_delivered=tokens)
        journal.update("during", state=RequestState.PREFILLING)
        await asyncio.sleep(0.002)
    journal.update("before", state=RequestState.DONE, tokens_delivered=100)
    redis_server.start()
    await eventually_reads(journal, JournalEntry("before", "router-0", RequestState.DONE, tokens_delivered=100))
    await eventually_reads(journal, JournalEntry("during", "router-0", RequestState.PREFILLING))
    assert not await journal.reserve("during", "router-0")
    assert journal.dropped_entries == 0
    await journal.close()
    await connection.close()


async def test_a_long_outage_drops_the_oldest_and_counts(redis_server: RedisServer, redis_prefix: str) -> None:
    connection = StateConnection(redis_server.url, timeout_s=30.0)
    journal = RequestJournal(connection, redis_prefix, ttl_s=60, retry_interval_s=0.02, max_buffered=10)
    journal.start()
    for number in range(30):
        journal.track(f"r{number}", "router-0")
        journal.update(f"r{number}", state=RequestState.DONE)
        await asyncio.sleep(0.002)
    assert journal.dropped_entries == 20
    redis_server.start()
    await eventually_reads(journal, JournalEntry("r29", "router-0", RequestState.DONE))
    assert await journal.read("r20") is not None
    assert await journal.read("r19") is None
    await journal.close()
    await connection.close()


async def test_reservations_asked_for_together_are_answered_each_for_itself(
    connection: StateConnection, redis_prefix: str
) -> None:
    journals = [RequestJournal(connection, redis_prefix, ttl_s=60) for _ in range(2)]
    names = [f"r{index}" for index in range(50)]
    answers = await asyncio.gather(
        *(journal.reserve(name, "router") for name in names for journal in journals),
        journals[0].reserve("r7", "router"),
    )
    per_name = [sum(answers[2 * index : 2 * index + 2]) for index in range(50)]
    assert per_name == [1] * 50, "each id went to one of them, once"
    assert answers[-1] is False


async def test_how_far_streams_are_is_sent_without_another_change(
    connection: StateConnection, redis_prefix: str
) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60, flush_interval_s=0.01)
    journal.start()
    assert await journal.reserve("r", "router-0")
    journal.update("r", state=RequestState.DECODING)
    for tokens in range(1, 300):
        journal.delivered("r", tokens)
    await eventually_reads(journal, JournalEntry("r", "router-0", RequestState.DECODING, tokens_delivered=299))
    await journal.close()


async def test_many_streams_are_not_told_of_all_at_once(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RequestJournal(connection, redis_prefix, ttl_s=60, flush_interval_s=0.01)
    names = [f"r{index}" for index in range(300)]
    for name in names:
        journal.track(name, "router-0")
        journal.update(name, state=RequestState.DECODING)
    await journal.close()
    together: list[int] = []
    evaluate = connection.evaluate

    async def counted(script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        together.append(len(keys))
        return await evaluate(script, keys, arguments)

    monkeypatch.setattr(connection, "evaluate", counted)
    journal.start()
    for name in names:
        journal.delivered(name, 7)
    for name in names:
        await eventually_reads(journal, JournalEntry(name, "router-0", RequestState.DECODING, tokens_delivered=7))
    await journal.close()
    assert len(together) >= 3
    assert max(together) <= MOST_TOGETHER


async def test_reservations_that_follow_each_other_closely_share_a_round_trip(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips, evaluate = 0, connection.evaluate

    async def counted(script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        nonlocal trips
        trips += 1
        return await evaluate(script, keys, arguments)

    monkeypatch.setattr(connection, "evaluate", counted)
    monkeypatch.setattr(unique_keys, "GATHER_S", 0.5)
    taking = unique_keys.UniqueKeys(connection, ttl_ms=60_000)
    assert await taking.take(f"{redis_prefix}:first", "x") is None
    later = []
    for number in range(5):
        later.append(asyncio.create_task(taking.take(f"{redis_prefix}:{number}", "x")))
        await asyncio.sleep(0)
    assert await asyncio.gather(*later) == [None] * 5
    assert trips == 2
