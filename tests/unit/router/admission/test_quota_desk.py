"""Quotas at the desk of a router: a real Redis, real requests, and every way in which a request can end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import pytest_asyncio

from router.admission.quota_accounts import BELIEF_S, QuotaCharges, TenantAccounts
from router.admission.quota_desk import QuotaDesk
from router.requests.events import Refusal
from router.requests.planning_log import PlanningLog
from router.requests.request_record import Ending
from services.config.tenants import TenantSettings
from services.identity.principal import Principal, Role
from services.rpc.caller import act_for
from services.rpc.errors import CancelledRequestError, InvalidRequestError, QuotaExceededError
from services.slo.contract import Contract
from services.slo.quotas import Quota, Use, standing
from services.state import quotas
from services.state.connection import StateConnection, StateUnavailableError
from services.state.journal_entry import RequestState
from services.state.quota_script import CHARGE
from services.state.quotas import SharedQuotas
from tests.support.eventually import eventually
from tests.unit.router.router_support import parsed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from router.requests.parsed_request import ParsedRequest
    from tests.support.redis_server import RedisServer

SLOW = TenantSettings(
    requests_per_s=0.001,
    requests_burst=4,
    prompt_tokens_per_s=0.001,
    prompt_tokens_burst=1000,
    output_tokens_per_s=0.001,
    output_tokens_burst=200,
    concurrent_requests=3,
    queue_places=2,
)
"""Quotas that come back no sooner than a test ends."""


@dataclass
class Live:
    """What the desk reads of an admitted request."""

    parsed: ParsedRequest
    state: RequestState = RequestState.QUEUED
    generated: list[int] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        return self.parsed.request_id


class DeskUnderTest(QuotaDesk):
    """A desk of one router. Its clock starts late, and stands still unless a test moves it."""

    def __init__(
        self, connection: StateConnection, prefix: str, tenants: dict[str, TenantSettings], router_id: str = "router-1"
    ) -> None:
        self.now_s = 5_000.0
        self.over: Counter[tuple[str, Quota]] = Counter()
        self.accounts = TenantAccounts(tenants)
        self.charges = QuotaCharges(SharedQuotas(connection, prefix, router_id), self.accounts, self.clock, 30.0)

        def over_quota(tenant: str, quota: Quota) -> None:
            self.over[tenant, quota] += 1

        super().__init__(self.accounts, self.charges, self.clock, over_quota)

    def clock(self) -> float:
        return self.now_s

    async def let_in(
        self, request_id: str, prompt_tokens: int = 10, max_tokens: int = 20, tenant: str = "acme"
    ) -> Live:
        request = replace(parsed(request_id, prompt_tokens, Contract(), max_tokens), tenant=tenant)
        await self.admit(request)
        return Live(request)

    async def refuses(self, request_id: str, **sizes: Any) -> str:
        """The quota that keeps a request from being let in."""
        with pytest.raises(QuotaExceededError) as caught:
            await self.let_in(request_id, **sizes)
        return caught.value.metadata["quota"]

    def run_to_a_worker(self, live: Live) -> None:
        self.on_admitted(cast("Any", live))
        self.on_entered(cast("Any", live))
        live.state = RequestState.PREFILLING
        self.on_entered(cast("Any", live))

    def end(self, live: Live, produced: int, ending: Ending = Ending.UNPROMISED) -> None:
        live.state = RequestState.DONE
        self.on_entered(cast("Any", live))
        record = type("Record", (), {"completion_tokens": produced, "ending": ending})()
        self.on_ended(cast("Any", live), cast("Any", record), None)

    def refuse(self, live: Live) -> None:
        error = CancelledRequestError("left")
        refusal = Refusal(error, cast("Any", None), live.request_id, 0.0, 0.0, live.parsed, PlanningLog())
        self.on_refused(refusal)

    async def left(self, quota: Quota, tenant: str = "acme") -> float:
        """What Redis says is left of a rate."""
        await self.charges.beat()
        account = self.accounts.find(tenant, self.now_s, proved=False)
        assert account is not None
        answer = await self.charges.charge(account, Use())
        found = {each.quota: each.remaining for each in standing(account.limits, answer.uses, self.now_s)}
        return round(found[quota], 1)


@pytest_asyncio.fixture
async def connection(redis_url: str) -> AsyncIterator[StateConnection]:
    connection = StateConnection(redis_url, timeout_s=30.0)
    yield connection
    await connection.close()


@pytest.fixture
def desk(connection: StateConnection, redis_prefix: str) -> DeskUnderTest:
    return DeskUnderTest(connection, redis_prefix, {"acme": SLOW})


async def test_a_request_is_charged_and_settled_by_what_it_produced(desk: DeskUnderTest) -> None:
    live = await desk.let_in("a", prompt_tokens=300, max_tokens=20)
    assert await desk.left(Quota.PROMPT_TOKENS) == 700
    reserved = 200 - await desk.left(Quota.OUTPUT_TOKENS)
    assert 15 < reserved <= 20
    desk.run_to_a_worker(live)
    desk.end(live, produced=3)
    assert await desk.left(Quota.OUTPUT_TOKENS) == 197
    assert await desk.left(Quota.PROMPT_TOKENS) == 700
    assert await desk.left(Quota.REQUESTS) == 3


async def test_what_outgrows_its_reservation_is_charged_while_it_runs(
    connection: StateConnection, redis_prefix: str
) -> None:
    tenant = TenantSettings(output_tokens_per_s=0.1, output_tokens_burst=200, concurrent_requests=9)
    desk = DeskUnderTest(connection, redis_prefix, {"acme": tenant})
    live = await desk.let_in("a", max_tokens=5000)
    assert await desk.left(Quota.OUTPUT_TOKENS) < 1
    desk.run_to_a_worker(live)
    live.generated = [7] * 700
    running = asyncio.create_task(desk.run())
    await eventually(lambda: desk._tickets["a"].output_tokens == 700)
    running.cancel()
    assert await desk.refuses("b") == "output_tokens_per_s"
    desk.end(live, produced=701)
    (account,) = desk.accounts
    await desk.charges.beat()
    with pytest.raises(QuotaExceededError) as caught:
        await desk.let_in("b", max_tokens=1)
    assert caught.value.retry_after_s == pytest.approx((501 + 1) / 0.1, rel=0.01), "a debt of 501 tokens"
    assert not any(account.shared.held.values())


async def test_places_come_back_with_the_first_worker_and_with_the_end(desk: DeskUnderTest) -> None:
    first, second = await desk.let_in("a"), await desk.let_in("b")
    assert await desk.refuses("c") == "queue_places"
    desk.run_to_a_worker(first)
    third = await desk.let_in("c")
    desk.run_to_a_worker(second)
    assert await desk.refuses("d") == "concurrent_requests"
    desk.end(first, produced=1)
    desk.end(third, produced=0)
    first.state = RequestState.QUEUED
    await desk.let_in("d")
    desk.end(second, produced=1)


async def test_a_request_that_starts_again_is_not_charged_again(desk: DeskUnderTest) -> None:
    live = await desk.let_in("a")
    desk.run_to_a_worker(live)
    before = [await desk.left(quota) for quota in (Quota.REQUESTS, Quota.PROMPT_TOKENS, Quota.OUTPUT_TOKENS)]
    for state in (RequestState.QUEUED, RequestState.PREFILLING, RequestState.QUEUED, RequestState.DECODING):
        live.state = state
        desk.on_restarted(cast("Any", live))
        desk.on_entered(cast("Any", live))
    after = [await desk.left(quota) for quota in (Quota.REQUESTS, Quota.PROMPT_TOKENS, Quota.OUTPUT_TOKENS)]
    assert before == after
    (account,) = desk.accounts
    assert account.shared.held == {Quota.CONCURRENT_REQUESTS: 1, Quota.QUEUE_PLACES: 0}
    desk.end(live, produced=1)
    assert account.shared.held == {Quota.CONCURRENT_REQUESTS: 0, Quota.QUEUE_PLACES: 0}


async def test_a_request_that_is_refused_after_all_keeps_its_charge_of_requests_only(desk: DeskUnderTest) -> None:
    live = await desk.let_in("a", prompt_tokens=900)
    desk.refuse(live)
    assert await desk.left(Quota.PROMPT_TOKENS) == 1000
    assert await desk.left(Quota.OUTPUT_TOKENS) == 200
    assert await desk.left(Quota.REQUESTS) == 3
    (account,) = desk.accounts
    assert not any(account.shared.held.values())
    desk.refuse(live)
    assert await desk.left(Quota.PROMPT_TOKENS) == 1000, "once"


async def test_reservations_follow_what_a_tenant_produces_and_not_its_max_tokens(desk: DeskUnderTest) -> None:
    desk = DeskUnderTest(
        desk.charges._shared._connection,
        desk.charges._shared._prefix,
        {"acme": TenantSettings(output_tokens_per_s=0.001, output_tokens_burst=5000)},
    )
    for number in range(60):
        desk.end(await desk.let_in(f"r{number}", max_tokens=4000), produced=10)
    before = await desk.left(Quota.OUTPUT_TOKENS)
    await desk.let_in("next", max_tokens=4000)
    assert before - await desk.left(Quota.OUTPUT_TOKENS) == pytest.approx(10, abs=1)


async def test_refusals_are_told_by_account_and_quota(desk: DeskUnderTest) -> None:
    assert await desk.refuses("a", prompt_tokens=1001) == "prompt_tokens_per_s"
    with pytest.raises(QuotaExceededError, match="this needs 1001, which is never let through") as caught:
        await desk.let_in("a", prompt_tokens=1001)
    assert caught.value.retry_after_s is None
    assert desk.over == {("acme", Quota.PROMPT_TOKENS): 2}


async def test_whoever_has_no_quota_does_not_ask_redis(connection: StateConnection, redis_prefix: str) -> None:
    await connection.close()
    desk = DeskUnderTest(
        StateConnection("redis://127.0.0.1:1/0", 1.0), redis_prefix, {"acme": SLOW, "free": TenantSettings()}
    )
    for tenant in ("free", "unnamed", ""):
        await desk.look(tenant, 1e6, quoted=False)
        desk.end(await desk.let_in("a", tenant=tenant), produced=1)
    assert not desk.charges.alone
    assert not len(desk.accounts)


async def test_the_tenant_of_the_credential_counts_and_not_the_one_that_is_claimed(desk: DeskUnderTest) -> None:
    async def as_acme() -> None:
        act_for(Principal("key-1", "acme", frozenset({Role.CLIENT})))
        await desk.let_in("a", tenant="somebody else")

    await asyncio.create_task(as_acme())
    assert await desk.left(Quota.REQUESTS) == 3


async def test_without_redis_a_router_has_its_share_and_redis_hears_of_it(
    redis_server: RedisServer, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.start()
    connection = StateConnection(redis_server.url, timeout_s=30.0, logs_changes=False)
    tenants = {"acme": TenantSettings(requests_per_s=0.001, requests_burst=8)}
    here, there = (DeskUnderTest(connection, redis_prefix, tenants, f"router-{number}") for number in (1, 2))
    for desk in (here, there, here):
        await desk.charges.beat()
    await here.let_in("first")
    redis_server.stop()
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            await here.let_in(f"alone-{number}")
    assert caplog.text.count("quotas are kept without Redis, 1/2 of each here") == 1
    assert here.charges.alone
    assert await here.refuses("too many") == "requests_per_s"
    for number in range(4):
        await there.let_in(f"there-{number}")
    assert await there.refuses("too many") == "requests_per_s"

    redis_server.start()
    with pytest.raises(QuotaExceededError):
        await here.look("acme", 1.0, quoted=False)
    await here.charges.beat()
    assert not here.charges.alone
    await here.look("acme", 1.0, quoted=False)
    assert await here.left(Quota.REQUESTS) == 5, "three were granted while Redis was away; what it knew is lost"
    await there.charges.beat()
    assert await there.left(Quota.REQUESTS) == 1
    await connection.close()


async def test_a_slow_redis_is_waited_for_once_and_nothing_is_charged_twice(
    connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked = asyncio.Event(), 0
    evaluate = connection.evaluate

    async def slow(script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        nonlocal asked
        asked += 1
        done = await evaluate(script, keys, arguments)
        await answer.wait()
        return done

    desk = DeskUnderTest(connection, redis_prefix, {"acme": SLOW})
    monkeypatch.setattr(connection, "evaluate", slow)
    desk.charges._patience_s = 0.01
    await desk.let_in("a")
    assert desk.charges.alone
    await desk.let_in("b")
    assert asked == 1, "nobody else waits"
    answer.set()
    desk.charges._patience_s = 30.0
    await desk.charges.beat()
    assert not desk.charges.alone
    assert await desk.left(Quota.REQUESTS) == 2
    (account,) = desk.accounts
    assert account.shared.held[Quota.CONCURRENT_REQUESTS] == 2
    desk.charges.alone = True
    await desk.charges.beat()
    assert await desk.left(Quota.REQUESTS) == 2, "told once"


async def test_outputs_that_are_cut_off_teach_nothing_of_short_ones(
    connection: StateConnection, redis_prefix: str
) -> None:
    tenant = TenantSettings(output_tokens_per_s=0.001, output_tokens_burst=50_000)
    desk = DeskUnderTest(connection, redis_prefix, {"acme": tenant})
    for number in range(80):
        produced, ending = (300, Ending.UNPROMISED) if number % 2 else (2, Ending.CANCELLED)
        desk.end(await desk.let_in(f"r{number}", max_tokens=4000), produced, ending)
    before = await desk.left(Quota.OUTPUT_TOKENS)
    await desk.let_in("next", max_tokens=4000)
    assert before - await desk.left(Quota.OUTPUT_TOKENS) == pytest.approx(300, abs=5)


def test_names_that_nobody_proved_share_the_account_of_default() -> None:
    accounts = TenantAccounts({"acme": SLOW, "default": SLOW})
    found = {id(accounts.find(f"name-{number}", 5_000.0, proved=False)) for number in range(10_000)}
    assert found == {id(accounts.find("", 5_000.0, proved=True))}
    assert len(accounts) == 1
    assert accounts.find("acme", 5_000.0, proved=False) is not accounts.find("default", 5_000.0, proved=False)


async def test_ten_thousand_proved_tenants_take_bounded_memory_and_no_fresh_burst(
    connection: StateConnection, redis_prefix: str
) -> None:
    desk = DeskUnderTest(connection, redis_prefix, {"default": TenantSettings(requests_per_s=0.01, requests_burst=2)})
    desk.accounts._max_accounts = 100
    desk.charges.alone = True

    async def ask(number: int) -> bool:
        act_for(Principal("key", f"tenant-{number}", frozenset({Role.CLIENT})))
        try:
            await desk.let_in(f"{number}")
        except QuotaExceededError:
            return False
        return True

    async def ask_all() -> int:
        return sum([await asyncio.create_task(ask(number)) for number in range(10_000)])

    assert await ask_all() == 100 + 2, "one each of those that have an account, and those that all others share"
    assert len(desk.accounts) <= 101
    assert await ask_all() == 100, "nobody was forgotten who has used anything"
    desk.now_s += 1000.0
    assert await ask_all() == 100 + 2, "idle accounts make room"
    assert len(desk.accounts) <= 101


async def test_what_tenants_may_still_use_is_told(desk: DeskUnderTest) -> None:
    assert list(desk.tenants()) == []
    live = await desk.let_in("a", prompt_tokens=300)
    ((name, standings),) = desk.tenants()
    assert name == "acme"
    assert {each.quota: (round(each.limit), round(each.remaining)) for each in standings} == {
        Quota.CONCURRENT_REQUESTS: (3, 2),
        Quota.QUEUE_PLACES: (2, 1),
        Quota.REQUESTS: (4, 3),
        Quota.PROMPT_TOKENS: (1000, 700),
        Quota.OUTPUT_TOKENS: (200, round(200 - desk._tickets["a"].output_tokens)),
    }
    desk.refuse(live)


async def test_a_tenant_whose_places_are_taken_here_is_refused_without_redis(
    desk: DeskUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        await desk.let_in(f"{number}")
    monkeypatch.setattr(desk.charges, "charge", None)
    with pytest.raises(QuotaExceededError) as caught:
        await desk.look("acme", 1.0, quoted=False)
    assert caught.value.metadata["quota"] == "queue_places"
    await desk.look("acme", 1.0, quoted=True)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_to_requests_accounts_end_as_what_was_used(
    connection: StateConnection, redis_prefix: str, seed: int
) -> None:
    draw = random.Random(seed)
    tenant = TenantSettings(
        requests_per_s=1e-3,
        requests_burst=1000,
        prompt_tokens_per_s=1e-3,
        prompt_tokens_burst=100_000,
        output_tokens_per_s=1e-3,
        output_tokens_burst=100_000,
        concurrent_requests=12,
        queue_places=8,
    )
    desks = [DeskUnderTest(connection, redis_prefix, {"acme": tenant}, f"router-{number}") for number in (1, 2)]
    running: list[tuple[DeskUnderTest, Live]] = []
    let_in = prompts = produced = 0
    for number in range(120):
        desk = draw.choice(desks)
        if draw.random() < 0.5:
            size = draw.randrange(1, 500)
            with contextlib.suppress(QuotaExceededError):
                running.append((desk, await desk.let_in(f"{number}", size, max_tokens=draw.randrange(1, 900))))
                let_in += 1
                prompts += size
        elif running:
            desk, live = running.pop(draw.randrange(len(running)))
            match draw.choice(("refused", "ended", "ended", "placed", "restarted")):
                case "refused" if live.state is RequestState.QUEUED and not live.generated:
                    desk.refuse(live)
                    prompts -= len(live.parsed.prompt)
                case "placed":
                    desk.run_to_a_worker(live)
                    live.generated += [7] * draw.randrange(900)
                    running.append((desk, live))
                case "restarted":
                    live.state = RequestState.QUEUED
                    desk.on_entered(cast("Any", live))
                    running.append((desk, live))
                case _:
                    desk.end(live, len(live.generated))
                    produced += len(live.generated)
        if draw.random() < 0.2:
            for ticket in desk._tickets.values():
                desk._charge_growth(ticket)
    held = [account.shared.held[Quota.CONCURRENT_REQUESTS] for desk in desks for account in desk.accounts]
    assert sum(held) == len(running)
    for desk, live in running:
        desk.end(live, len(live.generated))
        produced += len(live.generated)
    for desk in desks:
        await desk.charges.beat()
        assert not desk._tickets
        assert not any(count for account in desk.accounts for count in account.shared.held.values())
    assert let_in > 20
    assert await desks[0].left(Quota.REQUESTS) == 1000 - let_in
    assert await desks[1].left(Quota.PROMPT_TOKENS) == 100_000 - prompts
    assert await desks[0].left(Quota.OUTPUT_TOKENS) == 100_000 - produced


class RedisUnderTest:
    """A real Redis whose clock a test sets, that counts what it is asked, and that can be made to answer nothing."""

    def __init__(self, connection: StateConnection, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.away = False
        self._connection = connection
        self._key = f"{prefix}:quota:routers:clock"
        self._evaluate = connection.evaluate
        monkeypatch.setattr(connection, "evaluate", self._counted)
        stated = CHARGE.replace("redis.call('TIME')", "{redis.call('GET', KEYS[1] .. ':clock'), 0}")
        monkeypatch.setattr(quotas, "CHARGE", stated)

    async def set_clock(self, now_s: float) -> None:
        await self._connection.run(lambda redis: redis.set(self._key, repr(now_s)))

    async def _counted(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        self.asked += 1
        if self.away:
            raise StateUnavailableError(self._connection.url, "it is away")
        return await self._evaluate(script, keys, arguments)


@pytest.fixture
def redis(connection: StateConnection, redis_prefix: str, monkeypatch: pytest.MonkeyPatch) -> RedisUnderTest:
    return RedisUnderTest(connection, redis_prefix, monkeypatch)


async def foreseen(desk: DeskUnderTest) -> QuotaExceededError | None:
    """What a request is refused with before its prompt is looked at."""
    try:
        await desk.look("acme", 1.0, quoted=False)
    except QuotaExceededError as error:
        return error
    return None


async def test_a_refusal_by_a_clock_that_was_wrong_is_believed_for_a_second(
    connection: StateConnection, redis_prefix: str, redis: RedisUnderTest
) -> None:
    desk = DeskUnderTest(
        connection, redis_prefix, {"acme": TenantSettings(requests_per_s=1.0, requests_burst=4, quotes_per_s=1.0)}
    )
    await redis.set_clock(1.7e9)
    for number in range(3):
        await desk.let_in(f"{number}")
    await redis.set_clock(1.7e9 - 3600.0)
    with pytest.raises(QuotaExceededError) as caught:
        await desk.let_in("while the clock is wrong")
    assert caught.value.retry_after_s == pytest.approx(3600.0)
    await redis.set_clock(1.7e9 + 3.0)
    asked = redis.asked
    desk.now_s += BELIEF_S / 2
    refused = await foreseen(desk)
    assert refused is not None
    assert refused.metadata["quota"] == "requests_per_s"
    assert redis.asked == asked, "floods of what is refused anyway do not reach Redis"
    desk.now_s += BELIEF_S / 2
    assert await foreseen(desk) is None
    await desk.let_in("when it is right again")


async def test_whoever_watches_is_asked_for_again_each_second(
    connection: StateConnection, redis_prefix: str, redis: RedisUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = DeskUnderTest(
        connection, redis_prefix, {"acme": TenantSettings(watch_updates_per_s=1.0, watch_updates_burst=1)}
    )
    await redis.set_clock(1.7e9)
    await desk.watch("acme")
    await redis.set_clock(1.7e9 - 3600.0)
    sleep, waits = asyncio.sleep, []

    async def slept(seconds: float) -> None:
        if seconds > BELIEF_S / 2:
            waits.append(seconds)
            await redis.set_clock(1.7e9 + 1.0)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", slept)
    await desk.watch_on("acme")
    assert waits == [BELIEF_S]


async def test_what_is_told_while_redis_is_away_is_the_share_of_the_router(
    connection: StateConnection, redis_prefix: str, redis: RedisUnderTest
) -> None:
    tenant = TenantSettings(
        requests_per_s=0.001,
        requests_burst=4,
        prompt_tokens_per_s=0.001,
        prompt_tokens_burst=1000,
        concurrent_requests=10,
    )
    await redis.set_clock(1.7e9)
    here, there = (DeskUnderTest(connection, redis_prefix, {"acme": tenant}, f"router-{number}") for number in (1, 2))
    for desk in (there, here):
        await desk.charges.beat()

    def told(desk: DeskUnderTest, request_id: str) -> dict[Quota, tuple[float, float]]:
        return {each.quota: (each.limit, round(each.remaining, 1)) for each in desk.standings(request_id)}

    await here.let_in("before", prompt_tokens=100)
    assert told(here, "before") == {Quota.REQUESTS: (4, 3), Quota.PROMPT_TOKENS: (1000, 900)}
    redis.away = True
    await here.let_in("alone", prompt_tokens=50)
    assert told(here, "alone") == {Quota.REQUESTS: (2, 0), Quota.PROMPT_TOKENS: (500, 350)}
    ((_, standings),) = here.tenants()
    assert {each.quota: (each.limit, round(each.remaining)) for each in standings} == {
        Quota.CONCURRENT_REQUESTS: (5, 3),
        Quota.REQUESTS: (2, 0),
        Quota.PROMPT_TOKENS: (500, 350),
    }
    with pytest.raises(QuotaExceededError) as caught:
        await here.let_in("too many")
    for refused in (caught.value, await foreseen(here)):
        assert refused is not None
        assert refused.metadata["x-ratelimit-limit-requests"] == "2"
        assert refused.metadata["x-ratelimit-remaining-requests"] == "0"
        assert refused.metadata["x-ratelimit-limit-tokens"] == "500"
        assert refused.metadata["x-ratelimit-remaining-tokens"] == "350"
    redis.away = False
    await here.charges.beat()
    assert await foreseen(here) is None, "the whole is not used up"
    await here.let_in("after")
    assert told(here, "after") == {Quota.REQUESTS: (4, 1), Quota.PROMPT_TOKENS: (1000, 840)}


async def test_a_tenant_whose_places_of_the_share_are_taken_is_refused_before_its_prompt_is_looked_at(
    connection: StateConnection, redis_prefix: str, redis: RedisUnderTest
) -> None:
    await redis.set_clock(1.7e9)
    desk = DeskUnderTest(connection, redis_prefix, {"acme": TenantSettings(concurrent_requests=4)})
    desk.charges._processes = 4
    redis.away = True
    await desk.let_in("alone")
    refused = await foreseen(desk)
    assert refused is not None
    assert refused.metadata["quota"] == "concurrent_requests"


@pytest.mark.parametrize("quota", [Quota.PROMPT_TOKENS, Quota.OUTPUT_TOKENS])
async def test_a_tenant_without_a_token_left_is_refused_before_its_prompt_is_looked_at(
    connection: StateConnection, redis_prefix: str, redis: RedisUnderTest, quota: Quota
) -> None:
    await redis.set_clock(1.7e9)
    name = quota.value.removesuffix("_per_s")
    tenants = {"acme": TenantSettings.model_validate({f"{name}_per_s": 0.5, f"{name}_burst": 100})}
    here, there = (DeskUnderTest(connection, redis_prefix, tenants, f"router-{number}") for number in (1, 2))
    assert await foreseen(here) is None
    live = await there.let_in("all of it", prompt_tokens=100, max_tokens=5000)
    assert await foreseen(here) is None, "what this router has not heard of is found when it charges"
    assert await here.refuses("one more") == quota.value
    for _ in range(2):
        refused = await foreseen(here)
        assert refused is not None
        assert refused.metadata["quota"] == quota.value
        assert refused.retry_after_s is not None
        assert 0 < refused.retry_after_s <= 2.0, "the time of one token"
    assert here.over == {("acme", quota): 3}
    there.refuse(live)
    await there.charges.beat()
    assert await foreseen(here) is None, "what another router gives back counts at once"
    await here.let_in("one more")


async def test_a_debt_of_output_refuses_before_a_prompt_is_looked_at_until_it_is_paid(
    connection: StateConnection, redis_prefix: str, redis: RedisUnderTest
) -> None:
    await redis.set_clock(1.7e9)
    desk = DeskUnderTest(
        connection, redis_prefix, {"acme": TenantSettings(output_tokens_per_s=2.0, output_tokens_burst=100)}
    )
    desk.end(await desk.let_in("a", max_tokens=100), produced=300)
    refused = await foreseen(desk)
    assert refused is not None
    assert refused.retry_after_s == pytest.approx((200 + 1) / 2, rel=0.01)
    await redis.set_clock(1.7e9 + 101.0)
    desk.now_s += 101.0
    assert await foreseen(desk) is None


async def test_a_value_above_the_tenants_largest_is_refused_and_charged_nothing(
    connection: StateConnection, redis_prefix: str, redis: RedisUnderTest
) -> None:
    desk = DeskUnderTest(connection, redis_prefix, {"acme": TenantSettings(quotes_per_s=1.0, max_value=2.0)})
    for quoted in (False, True):
        with pytest.raises(InvalidRequestError) as caught:
            await desk.look("acme", 2.5, quoted=quoted)
        assert caught.value.field == "contract.value"
    assert redis.asked == 0
