"""Quotas in a real Redis: as the pure decision decides, across routers, through losses and garbage."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.slo.quotas import MAX_DEBT_S, Granted, OverQuota, Quota, QuotaLimits, Rate, Use, Uses, decide, settled
from services.slo.quotas.decision import COUNTS, RATES
from services.state import quotas
from services.state.connection import StateConnection, StateUnavailableError
from services.state.quota_script import CHARGE
from services.state.quotas import Account, SharedQuotas
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.support.redis_server import RedisServer

SLOW = QuotaLimits({Quota.REQUESTS: Rate(1e-3, 5.0)}, {Quota.CONCURRENT_REQUESTS: 3})
"""Five requests at once, and then none while a test lasts."""
ONE_REQUEST = Use({Quota.REQUESTS: 1.0}, (Quota.CONCURRENT_REQUESTS,))
STATED_CLOCK = "{redis.call('GET', KEYS[1] .. ':clock'), 0}"
"""What stands in for Redis's clock in the script, where a test sets the time."""


@pytest_asyncio.fixture
async def connection(redis_url: str) -> AsyncIterator[StateConnection]:
    connection = StateConnection(redis_url, timeout_s=30.0)
    yield connection
    await connection.close()


def routers(connection: StateConnection, prefix: str, count: int = 2) -> list[SharedQuotas]:
    return [SharedQuotas(connection, prefix, f"router-{number}") for number in range(count)]


async def put_text(connection: StateConnection, key: str, text: str) -> None:
    await connection.run(lambda redis: redis.set(key, text))


async def granted(shared: SharedQuotas, account: Account, use: Use = ONE_REQUEST) -> bool:
    return isinstance(await shared.charge(account, use), Granted)


limits = st.builds(
    QuotaLimits,
    st.dictionaries(
        st.sampled_from(RATES), st.builds(Rate, st.sampled_from([0.5, 1.0, 64.0]), st.integers(1, 99).map(float))
    ),
    st.dictionaries(st.sampled_from(COUNTS), st.integers(1, 4)),
)
charges = st.lists(
    st.tuples(
        st.integers(0, 2000),
        st.integers(0, 1),
        st.dictionaries(st.sampled_from(RATES), st.integers(1, 120).map(float)),
        st.lists(st.sampled_from(COUNTS), unique=True).map(tuple),
        st.dictionaries(st.sampled_from(RATES), st.integers(-50, 200).filter(bool).map(float)),
    ),
    min_size=1,
    max_size=12,
)
"""Ticks of 1/64 s since the one before, the router, amounts, places, and what is settled after it."""


@settings(max_examples=60, deadline=None)
@given(limits, charges)
def test_redis_decides_as_the_pure_decision(redis_url: str, limits: QuotaLimits, charges: list[Any]) -> None:
    asyncio.run(_compare(redis_url, limits, charges))


async def _compare(redis_url: str, limits: QuotaLimits, charges: list[Any]) -> None:
    prefix, now_s, uses = f"test-{uuid.uuid4().hex[:8]}", 1.7e9, Uses()
    connection = StateConnection(redis_url, timeout_s=30.0)
    both = routers(connection, prefix)
    accounts = [Account("acme", limits) for _ in both]
    held: Counter[Quota] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quotas, "LEASE_S", 1e6)
        patch.setattr(quotas, "CHARGE", CHARGE.replace("redis.call('TIME')", STATED_CLOCK))
        for ticks, router, amounts, places, owed in charges:
            now_s += ticks / 64
            await put_text(connection, f"{prefix}:quota:routers:clock", repr(now_s))
            use = Use(amounts, places)
            expected = decide(limits, Uses(uses.buckets, held), use, now_s)
            answer = await both[router].charge(accounts[router], use)
            assert type(answer) is type(expected)
            if isinstance(expected, OverQuota):
                assert answer == expected
            else:
                uses = expected.uses
                held.update(quota for quota in places if quota in limits.counts)
            assert {quota: bucket.full_at_s for quota, bucket in answer.uses.buckets.items()} == {
                quota: max(0.0, uses.buckets[quota].full_at_s - now_s) if quota in uses.buckets else 0.0
                for quota in limits.rates
            }
            if owed:
                both[router].settle(accounts[router], owed)
                await both[router].beat()
                uses = settled(limits, uses, owed, now_s)
    assert sum((account.held for account in accounts), Counter()) == held
    await connection.close()


@pytest.mark.parametrize("jump_s", [60.0, 86_000.0, 90_000.0, 1e7])
async def test_a_clock_that_jumps_back_shuts_nobody_out_for_more_than_a_day(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    monkeypatch.setattr(quotas, "CHARGE", CHARGE.replace("redis.call('TIME')", STATED_CLOCK))
    clock = f"{redis_prefix}:quota:routers:clock"
    await put_text(connection, clock, repr(1.7e9))
    (shared,) = routers(connection, redis_prefix, 1)
    account = Account("acme", QuotaLimits({Quota.REQUESTS: Rate(0.5, 5.0)}))
    assert [await granted(shared, account) for _ in range(6)] == [True] * 5 + [False]
    await put_text(connection, clock, repr(1.7e9 - jump_s))
    answer = await shared.charge(account, ONE_REQUEST)
    if jump_s > MAX_DEBT_S + 1:
        assert isinstance(answer, Granted), "a bucket further in the future than any debt is full"
    else:
        assert isinstance(answer, OverQuota)
        assert answer.retry_after_s == pytest.approx(jump_s + 2.0)
    await put_text(connection, clock, repr(1.7e9 + 10.0))
    assert await granted(shared, account), "a clock that is right again ends it"


async def test_a_clock_that_jumps_forward_fills_buckets_once(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "CHARGE", CHARGE.replace("redis.call('TIME')", STATED_CLOCK))
    (shared,) = routers(connection, redis_prefix, 1)
    account = Account("acme", QuotaLimits({Quota.REQUESTS: Rate(0.5, 5.0)}))
    for now_s in (1.7e9, 1.7e9 + 3600.0):
        await put_text(connection, f"{redis_prefix}:quota:routers:clock", repr(now_s))
        assert [await granted(shared, account) for _ in range(6)] == [True] * 5 + [False]


async def test_an_operator_who_deletes_an_account_ends_its_refusals(
    connection: StateConnection, redis_prefix: str
) -> None:
    (shared,) = routers(connection, redis_prefix, 1)
    account = Account("acme", QuotaLimits({Quota.REQUESTS: Rate(1e-3, 1.0)}, {Quota.CONCURRENT_REQUESTS: 2}))
    assert [await granted(shared, account) for _ in range(2)] == [True, False]
    await connection.run(lambda redis: redis.delete(f"{redis_prefix}:quota:account:acme"))
    assert await granted(shared, account)
    await connection.run(lambda redis: redis.delete(f"{redis_prefix}:quota:account:acme"))
    assert not await granted(shared, account), "places are told again by the router that holds them"


async def test_routers_share_a_rate_and_a_count(connection: StateConnection, redis_prefix: str) -> None:
    first, second = routers(connection, redis_prefix)
    here, there = Account("acme", SLOW), Account("acme", SLOW)
    assert await granted(first, here)
    assert await granted(second, there)
    assert await granted(first, here)
    refused = await second.charge(there, ONE_REQUEST)
    assert isinstance(refused, OverQuota)
    assert refused.quota is Quota.CONCURRENT_REQUESTS
    here.held.subtract([Quota.CONCURRENT_REQUESTS] * 2)
    first.settle(here, {})
    await first.beat()
    assert await granted(second, there)
    assert await granted(second, there)
    there.held.clear()
    second.settle(there, {})
    refused = await second.charge(there, ONE_REQUEST)
    assert isinstance(refused, OverQuota)
    assert refused.quota is Quota.REQUESTS
    assert 900 < refused.retry_after_s <= 1000
    assert (first.routers, second.routers) == (2, 2)


async def test_tenants_do_not_share(connection: StateConnection, redis_prefix: str) -> None:
    (shared,) = routers(connection, redis_prefix, 1)
    for name in ("a", "b", "routers", "ü \n:"):
        account = Account(name, SLOW)
        assert [await granted(shared, account) for _ in range(4)] == [True, True, True, False]


async def test_places_of_a_router_that_is_gone_come_back(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "LEASE_S", 0.2)
    limits = QuotaLimits(counts={Quota.CONCURRENT_REQUESTS: 1})
    dead, alive = routers(connection, redis_prefix)
    assert await granted(dead, Account("acme", limits))
    account = Account("acme", limits)
    assert not await granted(alive, account)
    await eventually(lambda: granted(alive, account))
    assert alive.routers == 1


async def test_many_charges_share_a_round_trip_and_none_overdraws(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips = 0
    evaluate = connection.evaluate

    async def counted(script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        nonlocal trips
        trips += 1
        return await evaluate(script, keys, arguments)

    monkeypatch.setattr(connection, "evaluate", counted)
    (shared,) = routers(connection, redis_prefix, 1)
    account = Account("acme", SLOW)
    answers = await asyncio.gather(*(granted(shared, account) for _ in range(300)))
    assert answers.count(True) == 3
    assert account.held == {Quota.CONCURRENT_REQUESTS: 3}
    assert trips == 3


async def test_a_charge_that_nobody_waits_for_any_more_is_undone(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    evaluate = connection.evaluate

    async def slow(script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        done = await evaluate(script, keys, arguments)
        asked.set()
        await answer.wait()
        return done

    monkeypatch.setattr(connection, "evaluate", slow)
    shared, other = routers(connection, redis_prefix)
    account = Account("acme", QuotaLimits({Quota.REQUESTS: Rate(1e-3, 1.0)}, {Quota.CONCURRENT_REQUESTS: 1}))
    waiting = asyncio.create_task(shared.charge(account, ONE_REQUEST))
    await asked.wait()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    answer.set()
    await eventually(lambda: granted(other, Account("acme", account.limits)))
    assert not account.held


async def test_a_charge_whose_caller_leaves_in_the_moment_of_the_answer_is_undone(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, other = routers(connection, redis_prefix)
    account = Account("acme", QuotaLimits({Quota.REQUESTS: Rate(1e-3, 1.0)}, {Quota.CONCURRENT_REQUESTS: 1}))
    waiting = asyncio.create_task(shared.charge(account, ONE_REQUEST))
    answer = shared._answer

    def leave(charge: Any, answered: Granted | OverQuota) -> None:
        answer(charge, answered)
        waiting.cancel()

    monkeypatch.setattr(shared, "_answer", leave)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(lambda: granted(other, Account("acme", account.limits)))
    assert not any(account.held.values())


@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "-1e300", "", "words", "0x", "[]"])
async def test_values_that_no_router_wrote_are_taken_for_absent(
    connection: StateConnection, redis_prefix: str, value: str
) -> None:
    key = f"{redis_prefix}:quota:account:acme"
    (shared,) = routers(connection, redis_prefix, 1)
    await connection.run(lambda redis: redis.hset(key, mapping={"requests_per_s": value, "@ghost": value}))
    account = Account("acme", SLOW)
    assert [await granted(shared, account) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    "record",
    [
        '{"ends": 1e12, "held": {"concurrent_requests": 9}}',
        '{"ends": "NaN", "held": {"concurrent_requests": 9}}',
        '{"held": {"concurrent_requests": 9}}',
        '{"ends": 4e9, "held": [9, 9, 9]}',
        '{"ends": [], "held": null}',
        "[" * 2000,
    ],
)
async def test_a_hold_that_no_router_wrote_holds_nothing(
    connection: StateConnection, redis_prefix: str, record: str
) -> None:
    (shared,) = routers(connection, redis_prefix, 1)
    await connection.run(lambda redis: redis.hset(f"{redis_prefix}:quota:account:acme", "@ghost", record))
    account = Account("acme", SLOW)
    assert [await granted(shared, account) for _ in range(4)] == [True, True, True, False]


async def test_keys_of_other_types_are_replaced(connection: StateConnection, redis_prefix: str) -> None:
    for name in ("routers", "account:acme"):
        await put_text(connection, f"{redis_prefix}:quota:{name}", "text")
    (shared,) = routers(connection, redis_prefix, 1)
    assert await granted(shared, Account("acme", SLOW))


async def test_an_account_expires_when_it_is_full_and_not_before(
    connection: StateConnection, redis_prefix: str
) -> None:
    (shared,) = routers(connection, redis_prefix, 1)
    fast = Account("fast", QuotaLimits({Quota.REQUESTS: Rate(1000.0, 5.0)}))
    assert await granted(shared, fast)
    slow = Account("slow", QuotaLimits({Quota.REQUESTS: Rate(0.01, 5.0)}))
    assert await granted(shared, slow)

    async def left_ms(key: str) -> int:
        left: int = await connection.run(lambda redis: redis.pttl(f"{redis_prefix}:quota:{key}"))
        return left

    assert 0 < await left_ms("account:fast") <= 1_010
    assert 100_000 < await left_ms("account:slow") <= 101_000
    assert 0 < await left_ms("routers") <= quotas.LEASE_S * 1000


async def test_a_redis_that_comes_back_empty_learns_what_is_held(redis_server: RedisServer, redis_prefix: str) -> None:
    redis_server.start()
    connection = StateConnection(redis_server.url, timeout_s=30.0)
    first, second = routers(connection, redis_prefix)
    account = Account("acme", QuotaLimits(counts={Quota.CONCURRENT_REQUESTS: 1}))
    assert await granted(first, account)
    redis_server.stop()
    with pytest.raises(StateUnavailableError):
        await second.charge(Account("acme", account.limits), ONE_REQUEST)
    redis_server.start()
    first.settle(account, {})
    await first.beat()
    assert not await granted(second, Account("acme", account.limits))
    await connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        *(None, [], [1], [1, "abc"], ["1", ["", "0", "0"]], [1, ["", "0"]]),
        *([1, ["", "nan", "0"]], [1, ["", "0", "inf"]], [1, ["other", "0", "0"]], [1, ["", "-1", "0"]]),
    ],
)
async def test_answers_that_make_no_sense_are_an_outage(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    async def lies(script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        return answer

    monkeypatch.setattr(connection, "evaluate", lies)
    (shared,) = routers(connection, redis_prefix, 1)
    with pytest.raises(StateUnavailableError):
        await shared.charge(Account("acme", SLOW), ONE_REQUEST)


async def test_what_can_never_be_let_through_is_infinitely_far(connection: StateConnection, redis_prefix: str) -> None:
    (shared,) = routers(connection, redis_prefix, 1)
    answer = await shared.charge(Account("acme", SLOW), Use({Quota.REQUESTS: 6.0}))
    assert answer == OverQuota(Quota.REQUESTS, math.inf)
