"""The accounts of tenants that have quotas: whose each is, and how one router charges them with and without Redis."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from services.config.tenants import DEFAULT_TENANT, TenantSettings
from services.slo.quotas import (
    FULL,
    Bucket,
    Granted,
    OverQuota,
    Quota,
    QuotaLimits,
    Standing,
    Use,
    Uses,
    decide,
    settled,
    standing,
)
from services.slo.quotas.decision import COUNT_RETRY_S
from services.slo.quotas.token_bucket import remaining
from services.state.connection import StateUnavailableError
from services.state.quotas import Account, SharedQuotas

log = logging.getLogger(__name__)

MAX_ACCOUNTS = 4096
"""Largest number of accounts of tenants that the configuration does not name: whoever issues credentials names them."""
PROBE_S = 0.5
"""Seconds between two tries to reach a Redis that has failed."""
BEAT_S = 2.0
"""Seconds between two signs of life to Redis, several of which fit into the time that places are kept without one."""
BELIEF_S = 1.0
"""Longest time, in seconds, for which a router refuses by what it last heard of an account before it asks again. Redis
may have been wrong about the time when it was heard, and by as much as a day."""
LEAST = {Quota.REQUESTS: 1.0, Quota.PROMPT_TOKENS: 1.0, Quota.OUTPUT_TOKENS: 1.0}
"""Least amounts that any request takes, whatever its prompt."""


@dataclass(slots=True)
class TenantAccount:
    """The account of one tenant as this router knows it. Times are on the router's clock."""

    shared: Account
    own: Uses = field(default_factory=Uses)
    """Use of this router's share by what it has granted itself, for when Redis is away."""
    unreported: Uses = field(default_factory=Uses)
    """Use of the share by what was granted while Redis was away."""
    seen: Uses = field(default_factory=Uses)
    """Use of the quotas as it was last heard of."""
    seen_limits: QuotaLimits = field(init=False)
    """Limits that `seen` is a use of: the tenant's, or this router's share of them while Redis is away."""
    seen_s: float = -math.inf
    """Time at which `seen` was heard; minus infinity if it says nothing any more."""

    def __post_init__(self) -> None:
        self.seen_limits = self.limits

    @property
    def name(self) -> str:
        return self.shared.name

    @property
    def limits(self) -> QuotaLimits:
        return self.shared.limits

    def idle(self, now_s: float) -> bool:
        """Return whether forgetting the account loses nothing: no place is held, and every bucket is full."""
        if any(count > 0 for count in self.shared.held.values()):
            return False
        known = (self.own, self.unreported, self.seen)
        return all(bucket.full_at_s <= now_s for uses in known for bucket in uses.buckets.values())

    def see(self, uses: Uses, limits: QuotaLimits, now_s: float) -> None:
        """Note what is used of some limits now."""
        self.seen, self.seen_limits, self.seen_s = uses, limits, now_s

    def standings(self, now_s: float) -> tuple[Standing, ...]:
        """Return what may still be used of every rate, by what was last heard."""
        return standing(self.seen_limits, self.seen, now_s)


class TenantAccounts:
    """Finds the account of a tenant.

    A tenant that the configuration names, or that a credential has proved, has an account of its own. All who merely
    claim a name share the account of `default`: a client that makes names up gains nothing by it.
    """

    def __init__(self, tenants: Mapping[str, TenantSettings], max_accounts: int = MAX_ACCOUNTS) -> None:
        self._limits = {name: settings.quotas for name, settings in tenants.items()}
        self._default = self._limits.get(DEFAULT_TENANT, QuotaLimits())
        self._max_accounts = max_accounts
        self._accounts: dict[str, TenantAccount] = {}
        self._swept_s = float("-inf")

    @property
    def any(self) -> bool:
        """Whether any tenant has a quota."""
        return any(limits != QuotaLimits() for limits in self._limits.values())

    def __iter__(self) -> Iterator[TenantAccount]:
        return iter(list(self._accounts.values()))

    def __len__(self) -> int:
        return len(self._accounts)

    def find(self, tenant: str, now_s: float, *, proved: bool) -> TenantAccount | None:
        """Return the account of a tenant; None if nothing of it is limited.

        Args:
            proved: a credential says that the caller belongs to the tenant.
        """
        named = tenant in self._limits
        limits = self._limits[tenant] if named else self._default
        if limits == QuotaLimits():
            return None
        name = tenant if named or (proved and tenant) else DEFAULT_TENANT
        account = self._accounts.get(name)
        if account is not None:
            return account
        if name not in self._limits and not self._room(now_s):
            name = DEFAULT_TENANT
        return self._accounts.setdefault(name, TenantAccount(Account(name, limits)))

    def _room(self, now_s: float) -> bool:
        """Return whether one more account can be kept; forget those that nothing is lost with."""
        if len(self._accounts) >= self._max_accounts and now_s - self._swept_s >= 1.0:
            self._swept_s = now_s
            self._accounts = {name: account for name, account in self._accounts.items() if not account.idle(now_s)}
        return len(self._accounts) < self._max_accounts


class QuotaCharges:
    """Charges accounts at Redis; while it is down or slow, each from this router's share of the quotas.

    Whichever decides, the decision comes within `patience_s`. After a failure nobody waits for Redis until it has
    answered a sign of life in that time; it is then told what was granted meanwhile. Times in answers are on the
    router's clock.
    """

    def __init__(
        self,
        shared: SharedQuotas,
        accounts: TenantAccounts,
        clock: Callable[[], float],
        patience_s: float,
        processes: int = 1,
    ) -> None:
        """
        Args:
            patience_s: seconds that a charge waits for Redis at most.
            processes: router processes on this port, among which quotas are shared as long as Redis has not said how
                many routers there are.
        """
        self.alone = False
        """Whether this router decides without Redis."""
        self._shared = shared
        self._accounts = accounts
        self._clock = clock
        self._patience_s = patience_s
        self._processes = processes

    @property
    def sharers(self) -> int:
        """Number of routers among which quotas are shared while Redis is away."""
        return max(1, self._shared.routers or self._processes)

    async def charge(self, account: TenantAccount, use: Use) -> Granted | OverQuota:
        """Charge all of a use, or nothing of it."""
        if not self.alone:
            try:
                async with asyncio.timeout(self._patience_s):
                    answer = await self._shared.charge(account.shared, use)
            except (TimeoutError, StateUnavailableError) as error:
                self._lose(error)
            else:
                now_s = self._clock()
                uses = _since(answer.uses, now_s)
                account.see(uses, account.limits, now_s)
                if isinstance(answer, Granted):
                    self._mirror(account, use.amounts)
                    return Granted(uses)
                return OverQuota(answer.quota, answer.retry_after_s, uses)
        return self._decide(account, use)

    async def foresee(self, account: TenantAccount) -> OverQuota | None:
        """Return why no request of a tenant can be let through now, whatever its prompt; None if one may be.

        Nothing is charged. Places that are taken by other routers are not looked at.
        """
        limits = self._share(account) if self.alone else account.limits
        held = account.shared.held
        for quota, limit in limits.counts.items():
            if held[quota] >= limit:
                return OverQuota(quota, COUNT_RETRY_S, account.seen)
        over = self._refused(account)
        # Tokens may have been given back since, perhaps by another router; a request is never given back.
        if over is None or (over.quota is Quota.REQUESTS and self._clock() - account.seen_s < BELIEF_S):
            return over
        await self.charge(account, Use())
        return self._refused(account)

    def settle(self, account: TenantAccount, amounts: Mapping[Quota, float]) -> None:
        """Charge amounts in any case, or give negative ones back, and tell Redis of the places that are held."""
        amounts = {quota: amount for quota, amount in amounts.items() if amount}
        now_s = self._clock()
        account.seen = settled(account.seen_limits, account.seen, amounts, now_s)
        if self.alone:
            share = self._share(account)
            account.own = settled(share, account.own, amounts, now_s)
            account.unreported = settled(share, account.unreported, amounts, now_s)
        else:
            self._mirror(account, amounts)
            self._shared.settle(account.shared, amounts)

    async def beat(self) -> None:
        """Give Redis a sign of life, with all places that are held and all that it has not been told."""
        for account in self._accounts:
            amounts = self._missing(account) if self.alone else {}
            if self.alone or any(account.shared.held.values()):
                self._shared.settle(account.shared, amounts)
        try:
            # A Redis that answers late is left when a charge notices, and used again when it is not late any more.
            async with asyncio.timeout(self._patience_s if self.alone else None):
                await self._shared.beat()
        except (TimeoutError, StateUnavailableError) as error:
            self._lose(error)
            return
        if self.alone:
            self.alone = False
            for account in self._accounts:
                account.unreported = Uses()
                # The share of one router is longer empty than the whole.
                account.seen_s = -math.inf
            log.info("quotas are shared with %d routers again", self._shared.routers)

    async def close(self) -> None:
        """Tell Redis what it has not been told yet."""
        if not self.alone:
            await self._shared.close()

    def _decide(self, account: TenantAccount, use: Use) -> Granted | OverQuota:
        share, now_s, held = self._share(account), self._clock(), account.shared.held
        answer = decide(share, Uses(account.own.buckets, held), use, now_s)
        account.see(answer.uses, share, now_s)
        if isinstance(answer, Granted):
            account.own = Uses(answer.uses.buckets)
            account.unreported = settled(share, account.unreported, use.amounts, now_s)
            held.update(quota for quota in share.counts if quota in use.places)
        return answer

    def _refused(self, account: TenantAccount) -> OverQuota | None:
        """Return why what was last heard of an account lets no request through; None if it lets one through."""
        least = {quota: min(LEAST[quota], rate.burst) for quota, rate in account.limits.rates.items() if quota in LEAST}
        answer = decide(account.seen_limits, account.seen, Use(least), self._clock())
        return answer if isinstance(answer, OverQuota) else None

    def _mirror(self, account: TenantAccount, amounts: Mapping[Quota, float]) -> None:
        """Note in the own share what Redis has granted, which may be more than it holds, but makes no debt there."""
        share, now_s = self._share(account), self._clock()
        buckets = settled(share, account.own, amounts, now_s).buckets
        account.own = Uses(
            {
                quota: Bucket(min(bucket.full_at_s, now_s + share.rates[quota].burst / share.rates[quota].per_s))
                for quota, bucket in buckets.items()
            }
        )

    def _missing(self, account: TenantAccount) -> dict[Quota, float]:
        """Return what Redis must be told was used: what of it the rates have not made up for meanwhile."""
        share, now_s = self._share(account), self._clock()
        left = {
            quota: rate.burst - remaining(rate, account.unreported.buckets.get(quota, FULL), now_s)
            for quota, rate in share.rates.items()
        }
        return {quota: amount for quota, amount in left.items() if amount > 0}

    def _share(self, account: TenantAccount) -> QuotaLimits:
        return account.limits.share(self.sharers)

    def _lose(self, error: Exception) -> None:
        if not self.alone:
            self.alone = True
            for account in self._accounts:
                account.see(account.own, self._share(account), self._clock())
            why = "it is slow" if isinstance(error, TimeoutError) else error
            log.warning("quotas are kept without Redis, 1/%d of each here: %s", self.sharers, why)


def _since(uses: Uses, now_s: float) -> Uses:
    """Return uses whose times count from now as such on the router's clock."""
    return Uses({quota: Bucket(now_s + bucket.full_at_s) for quota, bucket in uses.buckets.items()})
