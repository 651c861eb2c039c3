"""Fair shares of promises: while not everybody finds room, tenants are promised work in proportion to their weights.

What each tenant has been promised is counted in seconds of the cluster's scarcest resource for each unit of its weight
(`promise_cost`). A tenant that has had less than the one that has had most is owed the difference: its candidates count
for more in a round, and the tenants that have had most are promised only what leaves room for it. Nobody is turned away
for a tenant that sends nothing: shares that are not asked for are lent, and what was lent is never asked back. What a
tenant may be owed is bounded, so that one that asks for little cannot save up for a burst that takes everything.

A tenant that comes for the first time is owed nothing, so that new names bring nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.slo.planner import EVEN, OwedArrival, Standing

DEFAULT_TENANT: Final = "default"
"""Name under which the weight of all tenants stands that are not named."""
ACTIVE_S: Final = 10.0
"""Seconds after its last request for which a tenant takes part. Chosen: room that is left for nobody costs little."""
MOST_OWED_S: Final = 4.0
"""Seconds of its share of the cluster that a tenant can be owed at most. Chosen: so long a burst is served."""
LEAVES_ROOM_WITHIN: Final = 0.125
"""Tenants leave room while they have had within this share of `MOST_OWED_S` of what the one with most has had, if
somebody has had less. Chosen: those that take turns are this close to each other."""
MOST_PRIORITY: Final = 16.0
"""Priority of a tenant that is owed most. Chosen: more than most values differ by in one round."""
ROOM_REQUESTS: Final = 2.0
"""Requests of the tenant that is owed most for which each worker has room. Chosen on seed 0 of `bench fairness`."""
MOST_TENANTS: Final = 128
"""Tenants that are remembered; the one that has been silent for longest gives way. Clients may name any number."""
LEARNING_RATE: Final = 1 / 32
"""Weight of the latest request in what is remembered of a tenant's requests. Chosen."""
LONGEST_DUE_S: Final = 30.0
"""TTFT that counts for a request without one, in seconds: best effort is ranked so too."""


@dataclass(slots=True)
class TypicalRequest:
    """What requests are like in the mean."""

    new_tokens: float = 1.0
    """Tokens of the prompt that no worker has in its cache."""
    kv_tokens: float = 1.0
    ttft_s: float = LONGEST_DUE_S
    requests: int = 0
    """Number of requests that this was learnt from."""

    def learn(self, new_tokens: int, kv_tokens: int, ttft_s: float) -> None:
        """Note what one request is like."""
        self.requests += 1
        rate = max(LEARNING_RATE, 1 / self.requests)
        self.new_tokens += rate * (new_tokens - self.new_tokens)
        self.kv_tokens += rate * (max(kv_tokens, new_tokens) - self.kv_tokens)
        self.ttft_s += rate * (min(ttft_s, LONGEST_DUE_S) - self.ttft_s)


@dataclass(slots=True)
class TenantAccount:
    """What a tenant was promised and what its requests are like."""

    weight: float
    received: float
    """Seconds of the cluster promised to it for each unit of weight, comparable between tenants only."""
    came_s: float
    """When its last request came."""
    value: float
    """Value of its requests in the mean, by which values of different tenants are made comparable."""
    like: TypicalRequest = field(default_factory=TypicalRequest)
    promised_s: float = 0.0
    """Seconds of the cluster promised to it in all, while others were there."""


@dataclass(frozen=True, slots=True)
class RoundShares:
    """How tenants stand against each other when a round begins."""

    standings: Mapping[str, Standing]
    values: Mapping[str, float]
    """What a value of 1 of each tenant counts as beside the values of others."""
    owed_arrival: OwedArrival | None

    def standing(self, tenant: str) -> Standing:
        """Return the standing of a tenant; one that is not known is owed nothing."""
        return self.standings.get(tenant, EVEN)

    def value(self, tenant: str, value: float) -> float:
        """Return what a value of a tenant counts as beside the values of others."""
        return value * self.values.get(tenant, 1.0)


ALONE = RoundShares({}, {}, None)
"""The standing of tenants while there are not two of them: values count as they are."""


class FairShares:
    """The accounts of tenants. Owned by one event loop."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """
        Args:
            weights: by tenant; that of `DEFAULT_TENANT` is for all that are not named, 1 if it is not there.
        """
        self._weights = dict(weights)
        self._accounts: dict[str, TenantAccount] = {}
        """Accounts by tenant, in the order in which they came last."""
        self._all = TypicalRequest()
        """What the requests of all tenants are like."""

    @property
    def accounts(self) -> Mapping[str, TenantAccount]:
        """The accounts of all tenants that are remembered."""
        return self._accounts

    def came(self, tenant: str, value: float, now_s: float) -> None:
        """Note that a tenant wants a promise.

        Args:
            now_s: when its request arrived, which may be before others that were noted already.
        """
        active = self._active(now_s)
        # After a silence of everybody a new name stands where those stand that may come back.
        present = active or self._accounts
        front = max((account.received for account in present.values()), default=0.0)
        # A request whose prompt took long to read comes after later ones: the order of accounts is that of their times.
        latest = next(reversed(self._accounts.values()), None)
        came_s = now_s if latest is None else max(now_s, latest.came_s)
        account = self._accounts.pop(tenant, None)
        if account is None:
            weight = self._weights.get(tenant, self._weights.get(DEFAULT_TENANT, 1.0))
            account = TenantAccount(weight, front, came_s, value)
            if len(self._accounts) >= MOST_TENANTS:
                del self._accounts[next(iter(self._accounts))]
        account.value += LEARNING_RATE * (value - account.value)
        account.came_s = came_s
        account.received = max(account.received, front - _most_owed(active, account))
        self._accounts[tenant] = account

    def learn(self, tenant: str, new_tokens: int, kv_tokens: int, ttft_s: float) -> None:
        """Note what a request of a tenant is like."""
        account = self._accounts.get(tenant)
        if account is not None:
            account.like.learn(new_tokens, kv_tokens, ttft_s)
            self._all.learn(new_tokens, kv_tokens, ttft_s)

    def shared(self, now_s: float) -> bool:
        """Return whether there is more than one tenant that wants promises."""
        latest = iter(reversed(self._accounts.values()))
        next(latest, None)
        other = next(latest, None)
        return other is not None and other.came_s >= now_s - ACTIVE_S

    def comparable(self, tenant: str, value: float) -> float:
        """Return what a value of a tenant counts as beside the values of others."""
        account = self._accounts.get(tenant)
        return value if account is None else value * self._unit(account)

    def _unit(self, account: TenantAccount) -> float:
        """Return what a value of 1 counts as.

        The mean request of every tenant counts as much for its work: nobody gains by asking for more, and long prompts
        are not priced out by the short ones of another tenant.
        """
        work = account.like.new_tokens / self._all.new_tokens if account.like.requests else 1.0
        return work / account.value

    def promised(self, tenant: str, cost_s: float) -> None:
        """Charge a tenant for a promise.

        Args:
            cost_s: see `promise_cost_s`.
        """
        account = self._accounts.get(tenant)
        if account is not None:
            account.received += cost_s / account.weight
            account.promised_s += cost_s

    def round(self, now_s: float) -> RoundShares:
        """Return how tenants stand against each other now."""
        if not self.shared(now_s):
            return ALONE
        active = self._active(now_s)
        weights = sum(account.weight for account in active.values())
        most_owed = MOST_OWED_S / weights
        front = max(account.received for account in active.values())
        owed = {tenant: min(front - account.received, most_owed) for tenant, account in active.items()}
        last = max(owed, key=owed.__getitem__)
        near = LEAVES_ROOM_WITHIN * most_owed
        somebody = owed[last] > near
        standings = {
            tenant: Standing(1.0 + (MOST_PRIORITY - 1.0) * (lag / most_owed) ** 2, somebody and lag <= near)
            for tenant, lag in owed.items()
        }
        values = {tenant: self._unit(account) for tenant, account in active.items()}
        return RoundShares(standings, values, _arrival(active[last], weights) if somebody else None)

    def _active(self, now_s: float) -> dict[str, TenantAccount]:
        """Return the tenants that take part, those that came last first."""
        active = {}
        for tenant in reversed(self._accounts):
            account = self._accounts[tenant]
            if account.came_s < now_s - ACTIVE_S:
                break
            active[tenant] = account
        return active


def _most_owed(active: Mapping[str, TenantAccount], account: TenantAccount) -> float:
    others = sum(other.weight for other in active.values() if other is not account)
    return MOST_OWED_S / (others + account.weight)


def _arrival(account: TenantAccount, weights: float) -> OwedArrival:
    like = account.like
    return OwedArrival(like.new_tokens, like.kv_tokens, like.ttft_s, account.weight / weights, ROOM_REQUESTS)
