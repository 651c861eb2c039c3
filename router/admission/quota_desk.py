"""The quotas of tenants at a router: what is charged for a request, a quote or a watch, and what is given back."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from router.admission.quota_accounts import BEAT_S, BELIEF_S, PROBE_S, QuotaCharges, TenantAccount, TenantAccounts
from router.admission.refusals import RETRY_JITTER
from router.requests.events import Refusal, RequestObserver
from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from router.requests.request_record import Ending, RequestRecord
from services.contract.rate_limits import rate_limit_headers
from services.rpc.caller import caller
from services.rpc.errors import InvalidRequestError, QuotaExceededError, RequestError
from services.slo.lengths import TAIL_COVERAGE, OutputLengths
from services.slo.quotas import OverQuota, Quota, Standing, Use
from services.slo.quotas.decision import COUNTS
from services.state.journal_entry import RequestState

QUOTA_METADATA = "quota"
"""Name in the metadata of an error under which the quota that is used up stands."""


@dataclass(slots=True)
class _Ticket:
    """A request that was let through, and what it has been charged."""

    account: TenantAccount
    prompt_tokens: int
    output_tokens: float
    """Output tokens that are charged so far."""
    places: set[Quota]
    standings: tuple[Standing, ...]
    live: LiveRequest | None = field(default=None)


class QuotaDesk(RequestObserver):
    """Lets requests, quotes and watches through as far as the quotas of their tenants allow.

    The tenant is the one of the caller's credential; where credentials are not checked it is the one that the request
    claims. What was not produced is given back as a request ends; one that was refused after all keeps its charge of
    `requests_per_s` only. A request that starts again after the loss of a worker is not charged again.

    Forecasts of output lengths are the desk's own: those of the admission core are part of what is recorded and
    replayed, and must not depend on requests that the core never sees.
    """

    def __init__(
        self,
        accounts: TenantAccounts,
        charges: QuotaCharges,
        clock: Callable[[], float],
        over_quota: Callable[[str, Quota], None],
    ) -> None:
        """
        Args:
            over_quota: told the name of the account and the quota whenever something is not let through.
        """
        self._accounts = accounts
        self._charges = charges
        self._clock = clock
        self._over_quota = over_quota
        self._lengths = OutputLengths()
        self._tickets: dict[str, _Ticket] = {}

    @property
    def warning(self) -> str:
        """Return what an operator should know; empty if all is well."""
        if not self._charges.alone:
            return ""
        return f"quotas are kept without Redis: this router lets 1/{self._charges.sharers} of each through"

    def tenants(self) -> Iterator[tuple[str, tuple[Standing, ...]]]:
        """Yield the tenants with quotas, and what each may still use.

        Rates are as they were last heard of. Counts are told by the requests of this router alone. While Redis is away
        both are those of this router's share.
        """
        now_s = self._clock()
        for account in self._accounts:
            held = account.shared.held
            limits = account.seen_limits.counts.items()
            counts = (Standing(each, limit, max(0, limit - held[each]), 0.0) for each, limit in limits)
            yield account.name, (*counts, *account.standings(now_s))

    async def close(self) -> None:
        """Tell Redis what it has not been told yet."""
        await self._charges.close()

    async def look(self, tenant: str, value: float, *, quoted: bool) -> None:
        """Refuse what can be refused before the prompt of a request is looked at, and charge a quote.

        Args:
            value: that of the contract.
            quoted: the request is only asked about.

        Raises:
            InvalidRequestError: its value is larger than the tenant may ask for.
            QuotaExceededError: no request, or no quote, of the tenant can be let through now.
        """
        account = self._account(tenant)
        if account is None:
            return
        largest = account.limits.max_value
        if largest is not None and value > largest:
            raise InvalidRequestError(f"at most {largest:g} for this tenant; got {value:g}", field="contract.value")
        if quoted:
            await self._charge_one(tenant, Quota.QUOTES)
            return
        over = await self._charges.foresee(account)
        if over is not None:
            raise self._refusal(account, over, 1.0)

    async def admit(self, parsed: ParsedRequest) -> None:
        """Charge a request, whose id must be reserved.

        Raises:
            QuotaExceededError: a quota of the tenant is used up.
        """
        account = self._account(parsed.tenant)
        if account is None:
            return
        limits = account.limits
        amounts = {Quota.REQUESTS: 1.0, Quota.PROMPT_TOKENS: float(len(parsed.prompt))}
        reserved = 0.0
        if Quota.OUTPUT_TOKENS in limits.rates:
            expected = self._lengths.forecast(
                account.name,
                parsed.application,
                TAIL_COVERAGE,
                parsed.sampling.max_tokens,
                hint_tokens=parsed.expected_output_tokens,
            ).expected_tokens
            reserved = amounts[Quota.OUTPUT_TOKENS] = min(max(1.0, expected), limits.rates[Quota.OUTPUT_TOKENS].burst)
        await self._charge(account, Use(amounts, COUNTS))
        places = {quota for quota in COUNTS if quota in limits.counts}
        standings = account.standings(self._clock())
        self._tickets[parsed.request_id] = _Ticket(account, len(parsed.prompt), reserved, places, standings)

    async def watch(self, tenant: str) -> None:
        """Charge one state of the cluster that is sent to somebody who watches.

        Raises:
            QuotaExceededError: the tenant's quota of states is used up.
        """
        await self._charge_one(tenant, Quota.WATCH_UPDATES)

    async def watch_on(self, tenant: str) -> None:
        """Charge one more state for somebody who watches; wait until it is let through."""
        account = self._account(tenant)
        if account is None or Quota.WATCH_UPDATES not in account.limits.rates:
            return
        one = Use({Quota.WATCH_UPDATES: 1.0})
        answer = await self._charges.charge(account, one)
        while isinstance(answer, OverQuota):
            await asyncio.sleep(min(answer.retry_after_s, BELIEF_S))
            answer = await self._charges.charge(account, one)

    def standings(self, request_id: str) -> tuple[Standing, ...]:
        """Return what the tenant of a request could still use just after it was let through; empty without quotas."""
        ticket = self._tickets.get(request_id)
        return () if ticket is None else ticket.standings

    def on_refused(self, refusal: Refusal) -> None:
        """Give back what a request was charged that was not admitted after all, but for the request itself."""
        ticket = None if refusal.parsed is None else self._tickets.pop(refusal.parsed.request_id, None)
        if ticket is not None:
            self._end(ticket, prompt_tokens=0, output_tokens=0)

    def on_admitted(self, request: LiveRequest) -> None:
        """Keep the request, whose output may outgrow what is charged."""
        ticket = self._tickets.get(request.request_id)
        if ticket is not None:
            ticket.live = request

    def on_entered(self, request: LiveRequest) -> None:
        """Free the request's place in the queue as soon as a worker has it."""
        if request.state is not RequestState.QUEUED:
            ticket = self._tickets.get(request.request_id)
            if ticket is not None and Quota.QUEUE_PLACES in ticket.places:
                self._free(ticket, Quota.QUEUE_PLACES)
                self._charges.settle(ticket.account, {})

    def on_ended(self, request: LiveRequest, record: RequestRecord, error: RequestError | None) -> None:
        """Settle what was produced, and learn from its length."""
        ticket = self._tickets.pop(request.request_id, None)
        if ticket is None:
            return
        produced = record.completion_tokens
        self._end(ticket, ticket.prompt_tokens, produced)
        if produced and Quota.OUTPUT_TOKENS in ticket.account.limits.rates:
            done = record.ending in (Ending.KEPT, Ending.MISSED, Ending.UNPROMISED)
            complete = done and produced < request.parsed.sampling.max_tokens
            self._lengths.observe(ticket.account.name, request.parsed.application, produced, complete=complete)

    async def run(self) -> None:
        """Charge output that outgrows its reservation, and give Redis signs of life, until cancelled.

        Without any quota Redis is not asked.
        """
        if not self._accounts.any:
            await asyncio.Event().wait()
        beaten_s = -math.inf
        while True:
            for ticket in self._tickets.values():
                self._charge_growth(ticket)
            if self._charges.alone or self._clock() - beaten_s >= BEAT_S:
                beaten_s = self._clock()
                await self._charges.beat()
            await asyncio.sleep(PROBE_S)

    def _charge_growth(self, ticket: _Ticket) -> None:
        grown = 0.0 if ticket.live is None else len(ticket.live.generated) - ticket.output_tokens
        if grown > 0 and ticket.output_tokens:
            ticket.output_tokens += grown
            self._charges.settle(ticket.account, {Quota.OUTPUT_TOKENS: grown})

    def _account(self, tenant: str) -> TenantAccount | None:
        who = caller()
        return self._accounts.find(who.tenant if who.checked else tenant, self._clock(), proved=who.checked)

    async def _charge_one(self, tenant: str, quota: Quota) -> None:
        account = self._account(tenant)
        if account is not None and quota in account.limits.rates:
            await self._charge(account, Use({quota: 1.0}))

    async def _charge(self, account: TenantAccount, use: Use) -> None:
        answer = await self._charges.charge(account, use)
        if isinstance(answer, OverQuota):
            raise self._refusal(account, answer, use.amounts.get(answer.quota, 1.0))

    def _refusal(self, account: TenantAccount, over: OverQuota, asked: float) -> QuotaExceededError:
        self._over_quota(account.name, over.quota)
        rate = account.limits.rates.get(over.quota)
        retry_after_s: float | None = (
            math.ceil(over.retry_after_s * 1e3) / 1e3 if over.retry_after_s < math.inf else None
        )
        if rate is None:
            limit = f"{account.limits.counts[over.quota]} at the same time"
            retry_after_s = over.retry_after_s * (1 + RETRY_JITTER * random.random())
        elif retry_after_s is None:
            limit = f"{rate.burst:g} at once; this needs {asked:g}, which is never let through"
        else:
            limit = f"{rate.per_s:g} a second, {rate.burst:g} at once"
        return QuotaExceededError(
            f"the quota {over.quota} of tenant {account.name!r} is used up: {limit}",
            retry_after_s=retry_after_s,
            metadata={
                QUOTA_METADATA: over.quota.value,
                **rate_limit_headers(account.standings(self._clock())),
            },
        )

    def _end(self, ticket: _Ticket, prompt_tokens: int, output_tokens: int) -> None:
        """Free the places of a request, and settle the difference of what it has used to what it was charged."""
        for quota in tuple(ticket.places):
            self._free(ticket, quota)
        amounts = {Quota.PROMPT_TOKENS: float(prompt_tokens - ticket.prompt_tokens)}
        if Quota.OUTPUT_TOKENS in ticket.account.limits.rates:
            amounts[Quota.OUTPUT_TOKENS] = output_tokens - ticket.output_tokens
        self._charges.settle(ticket.account, amounts)

    def _free(self, ticket: _Ticket, quota: Quota) -> None:
        ticket.places.discard(quota)
        ticket.account.shared.held[quota] -= 1
