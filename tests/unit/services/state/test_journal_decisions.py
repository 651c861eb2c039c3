"""Decisions of the request journal, with a Redis in memory and no background task unless a test starts it."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from services.state.connection import StateUnavailableError
from services.state.delivery_progress import DeliveryProgress
from services.state.journal import MOST_TOGETHER, RequestJournal, UnknownEntryError
from services.state.journal_entry import JournalEntry, RequestState
from services.state.unique_keys import UniqueKeys
from tests.support.eventually import eventually
from tests.unit.services.state.memory_redis import MemoryRedis, SlowRedis

START_S = 5_000.0


def journal_on(redis: MemoryRedis, **options: int) -> RequestJournal:
    return RequestJournal(redis, "test", ttl_s=60, clock=lambda: START_S, **options)


def test_the_states_that_end_a_request() -> None:
    assert {state for state in RequestState if state.final} == {
        RequestState.DONE,
        RequestState.FAILED,
        RequestState.CANCELLED,
    }


def test_an_entry_survives_the_journey_and_a_newer_router() -> None:
    entry = JournalEntry("r", "router", RequestState.DECODING, 2, "p", "e1", "d", "e2", 17)
    text = entry.to_json("mark")
    assert JournalEntry.from_json(text) == entry
    assert JournalEntry.from_json(text.replace("{", '{"added_later":1,', 1)) == entry


@pytest.mark.parametrize("state", [state for state in RequestState if state.final])
async def test_a_request_that_has_ended_takes_no_more_changes(state: RequestState) -> None:
    journal = journal_on(MemoryRedis())
    assert journal.track("r", "router")
    journal.update("r", state=state)
    assert journal.live_entries == 0
    with pytest.raises(UnknownEntryError):
        journal.update("r", tokens_delivered=1)


async def test_a_reservation_whose_first_answer_was_lost_is_known_as_ones_own() -> None:
    redis = MemoryRedis()
    redis.lost_answers = True
    assert await journal_on(redis).reserve("r", "router")
    assert not await journal_on(redis).reserve("r", "another router")


async def test_an_id_of_this_router_is_not_asked_for_again() -> None:
    redis = MemoryRedis()
    journal = journal_on(redis)
    journal.track("r", "router")
    redis.away = True
    assert await journal.reserve("r", "router") is False


async def test_of_two_calls_with_one_id_at_the_same_time_one_gets_it() -> None:
    # While the first call waits for Redis, the id is tracked without it.
    redis = MemoryRedis()
    journal = journal_on(redis)
    reserving = asyncio.create_task(journal.reserve("r", "router"))
    await asyncio.sleep(0)
    assert journal.track("r", "router")
    journal.update("r", state=RequestState.DECODING, tokens_delivered=3)
    assert await reserving is False
    await journal.close()
    assert redis.entry("test:request:r")["tokens_delivered"] == 3


async def test_an_abandoned_id_is_free_again() -> None:
    redis = MemoryRedis()
    journal = journal_on(redis)
    assert await journal.reserve("r", "router")
    journal.update("r", state=RequestState.PREFILLING)
    journal.abandon("r")
    with pytest.raises(UnknownEntryError):
        journal.abandon("r")
    await journal.close()
    assert redis.texts == {}
    assert redis.written == [], "what was abandoned is not written any more"


async def test_an_abandoned_id_is_given_back_when_redis_returns() -> None:
    redis = MemoryRedis()
    journal = journal_on(redis)
    assert await journal.reserve("r", "router")
    journal.abandon("r")
    redis.away = True
    await journal.close()
    assert "test:request:r" in redis.texts
    redis.away = False
    await journal.close()
    assert redis.texts == {}


async def test_an_abandoned_id_that_is_reserved_again_is_not_given_back() -> None:
    redis = MemoryRedis()
    journal = journal_on(redis)
    assert await journal.reserve("r", "router")
    journal.abandon("r")
    assert await journal.reserve("r", "router"), "it was not deleted yet"
    await journal.close()
    assert redis.entry("test:request:r")["state"] == "queued"
    assert not await journal_on(redis).reserve("r", "another router")


async def test_an_outage_drops_the_entries_that_have_waited_longest() -> None:
    redis = MemoryRedis()
    journal = journal_on(redis, max_buffered=3)
    for name in ("a", "b", "c"):
        journal.track(name, "router")
    redis.away = True
    await journal.close()
    journal.update("a", state=RequestState.DECODING)
    journal.track("d", "router")
    assert journal.dropped_entries == 1
    redis.away = False
    await journal.close()
    assert set(redis.texts) == {f"test:request:{name}" for name in "bcd"}
    assert redis.ttls_ms == {"60000"}


async def test_a_batch_holds_a_bounded_number_of_entries() -> None:
    redis = MemoryRedis()
    journal = journal_on(redis)
    for number in range(2 * MOST_TOGETHER + 1):
        journal.track(f"r{number}", "router")
    await journal.close()
    assert [len(keys) for keys in redis.written] == [MOST_TOGETHER, MOST_TOGETHER, 1]
    assert journal.flushes == 3


def test_streams_are_due_evenly_over_the_interval() -> None:
    progress = DeliveryProgress(START_S)
    for number in range(10):
        progress.note(f"r{number}", number)
    assert progress.due(START_S, live=10) == []
    assert progress.due(START_S + 0.31, live=10) == [("r0", 0), ("r1", 1), ("r2", 2)]
    assert progress.due(START_S + 0.31, live=10) == [], "they had their share"
    progress.note("r3", 30)
    progress.note("r0", 100)
    assert progress.due(START_S + 0.52, live=10) == [("r3", 30), ("r4", 4)], "r0 has to wait behind the others"
    progress.forget("r5")
    assert progress.due(START_S + 60.0, live=10) == [("r6", 6), ("r7", 7), ("r8", 8), ("r9", 9), ("r0", 100)]
    assert not progress


def test_time_without_streams_gives_the_next_ones_no_larger_share() -> None:
    progress = DeliveryProgress(START_S)
    assert progress.due(START_S + 100.0, live=0) == []
    progress.note("r", 1)
    assert progress
    assert progress.due(START_S + 100.9, live=1) == []
    assert progress.due(START_S + 101.0, live=1) == [("r", 1)]


async def test_progress_of_a_request_that_ended_is_not_written() -> None:
    redis = MemoryRedis()
    clock = itertools.count(START_S, 10.0)
    journal = RequestJournal(redis, "test", ttl_s=60, flush_interval_s=0.0, clock=lambda: next(clock))
    journal.track("r", "router")
    journal.track("s", "router")
    journal.update("r", state=RequestState.DONE, tokens_delivered=5)
    journal.delivered("r", 7)
    journal.delivered("s", 8)
    journal.start()
    await eventually(lambda: '"tokens_delivered":8' in redis.texts.get("test:request:s", ""))
    await journal.close()
    assert redis.entry("test:request:r")["tokens_delivered"] == 5


async def test_an_update_knows_better_than_the_progress_noted_before_it() -> None:
    redis = MemoryRedis()
    clock = itertools.count(START_S, 10.0)
    journal = RequestJournal(redis, "test", ttl_s=60, flush_interval_s=0.0, clock=lambda: next(clock))
    journal.track("r", "router")
    journal.track("s", "router")
    journal.delivered("r", 7)
    journal.update("r", state=RequestState.DECODING, tokens_delivered=9)
    journal.delivered("s", 8)
    journal.start()
    await eventually(lambda: '"tokens_delivered":8' in redis.texts.get("test:request:s", ""))
    await journal.close()
    assert redis.entry("test:request:r")["tokens_delivered"] == 9


async def test_all_who_wait_for_keys_hear_that_redis_is_away() -> None:
    redis = MemoryRedis()
    redis.away = True
    keys = UniqueKeys(redis, ttl_ms=1_000)
    answers = await asyncio.gather(*(keys.take(name, "text") for name in "abc"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StateUnavailableError] * 3
    redis.away = False
    assert await keys.take("a", "text") is None


async def test_who_gives_up_waiting_for_a_key_harms_nobody_else() -> None:
    redis = MemoryRedis()
    keys = UniqueKeys(redis, ttl_ms=1_000)
    gone, stays = (asyncio.create_task(keys.take(name, "text")) for name in "ab")
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays is None
    assert await keys.take("b", "other text") == "text"
    assert redis.ttls_ms == {"1000"}


async def _leave_while_reserving(redis: SlowRedis, journal: RequestJournal) -> None:
    """Reserve "r" for a client that leaves after Redis was asked and before it answers."""
    reserving = asyncio.create_task(journal.reserve("r", "router"))
    await eventually(lambda: redis.asked > 0)
    reserving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reserving


async def _hear(redis: SlowRedis) -> None:
    """Let Redis answer, and whoever waits hear it."""
    redis.answers.set()
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_id_of_a_client_that_leaves_while_it_is_reserved_is_free_again() -> None:
    redis = SlowRedis()
    journal = journal_on(redis)
    await _leave_while_reserving(redis, journal)
    assert "test:request:r" in redis.texts
    await _hear(redis)
    await journal.close()
    assert redis.texts == {}
    assert await journal.reserve("r", "router")


async def test_an_id_that_is_tracked_by_the_time_of_the_answer_is_kept() -> None:
    redis = SlowRedis()
    journal = journal_on(redis)
    await _leave_while_reserving(redis, journal)
    assert journal.track("r", "router")
    await _hear(redis)
    await journal.close()
    assert redis.entry("test:request:r")["router_id"] == "router"


async def test_the_id_of_a_stranger_is_not_freed_by_a_client_that_leaves() -> None:
    redis = SlowRedis()
    redis.answers.set()
    assert await journal_on(redis).reserve("r", "another router")
    redis.answers.clear()
    redis.asked = 0
    journal = journal_on(redis)
    await _leave_while_reserving(redis, journal)
    await _hear(redis)
    await journal.close()
    assert redis.entry("test:request:r")["router_id"] == "another router"


async def test_a_client_that_leaves_while_redis_is_away_frees_nothing_and_breaks_nothing() -> None:
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    redis = SlowRedis()
    journal = journal_on(redis)
    await _leave_while_reserving(redis, journal)
    redis.away = True
    await _hear(redis)
    redis.away = False
    await journal.close()
    assert unhandled == []
    assert "test:request:r" in redis.texts, "nobody knows whose it is: it expires"
