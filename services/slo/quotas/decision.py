"""Whether a tenant may use more at this moment, by all of its quotas together.

Quotas are of two kinds. A *rate* (prompt tokens a second) is a token bucket. A *count* (requests at the same time) is
compared with its limit. A request uses several at once, and is charged for all of them or for none.

Output is charged before it exists: its expected length is reserved, and when the request ends (or outgrows the
reservation) the difference to what was produced is settled, in either direction. So a tenant is not kept waiting by a
`max_tokens` that its answers never reach, and what it produces beyond its reservations becomes a debt, which the rate
pays off before anything else is admitted. A request is never stopped for a quota once it is admitted.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.slo.quotas.token_bucket import FULL, Bucket, Rate, ready_at_s, remaining, taken, wait_s

COUNT_RETRY_S = 1.0
"""Seconds after which to try again where a count is at its limit: nobody knows when one of the requests will end."""


class Quota(enum.StrEnum):
    """The quotas of a tenant, by the names that clients are told."""

    CONCURRENT_REQUESTS = "concurrent_requests"
    """Requests between their acceptance and their end."""
    QUEUE_PLACES = "queue_places"
    """Requests that wait in a router: without a verdict yet, or for room on a worker."""
    REQUESTS = "requests_per_s"
    PROMPT_TOKENS = "prompt_tokens_per_s"
    OUTPUT_TOKENS = "output_tokens_per_s"
    QUOTES = "quotes_per_s"
    WATCH_UPDATES = "watch_updates_per_s"
    """States of the cluster that are sent to those who watch it."""


COUNTS = (Quota.CONCURRENT_REQUESTS, Quota.QUEUE_PLACES)
RATES = tuple(quota for quota in Quota if quota not in COUNTS)


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """The quotas of one tenant; what is left out is unlimited."""

    rates: Mapping[Quota, Rate] = field(default_factory=dict)
    counts: Mapping[Quota, int] = field(default_factory=dict)
    max_value: float | None = None
    """Largest value of a contract; None: any."""

    def share(self, sharers: int) -> QuotaLimits:
        """Return what each of several routers may grant that do not know of each other; of a count, at least one."""
        return QuotaLimits(
            {quota: rate.share(sharers) for quota, rate in self.rates.items()},
            {quota: max(1, limit // sharers) for quota, limit in self.counts.items()},
            self.max_value,
        )


@dataclass(frozen=True, slots=True)
class Uses:
    """The present use of a tenant's quotas."""

    buckets: Mapping[Quota, Bucket] = field(default_factory=dict)
    """Buckets by quota; one that is left out is full."""
    counts: Mapping[Quota, int] = field(default_factory=dict)
    """Counts by quota, without what is asked for; one that is left out is 0."""


@dataclass(frozen=True, slots=True)
class Use:
    """Something that a tenant asks for uses so much of its quotas."""

    amounts: Mapping[Quota, float] = field(default_factory=dict)
    """Amounts by rate."""
    places: tuple[Quota, ...] = ()
    """Counts of which it takes one place each."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A use that was let through, and what is used after it."""

    uses: Uses


@dataclass(frozen=True, slots=True)
class OverQuota:
    """A use that was not let through. Nothing was charged."""

    quota: Quota
    """The quota that must be waited for longest."""
    retry_after_s: float
    """Seconds until the same use is let through if nothing else is charged meanwhile; infinite if it never is. For a
    count it is a guess."""
    uses: Uses = field(default_factory=Uses, compare=False)
    """What is used at this moment."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a tenant may still use of one quota."""

    quota: Quota
    limit: float
    """Amount that a full bucket holds, or number of places."""
    remaining: float
    """Amount that may be used at once; not negative."""
    reset_s: float
    """Seconds until the bucket is full again if nothing is used; 0 for a count."""


def decide(limits: QuotaLimits, uses: Uses, use: Use, now_s: float) -> Granted | OverQuota:
    """Charge all that is used, or nothing of it."""
    worst: OverQuota | None = None
    for quota, limit in limits.counts.items():
        if quota in use.places and uses.counts.get(quota, 0) >= limit:
            worst = _later(worst, OverQuota(quota, COUNT_RETRY_S, uses))
    for quota, rate in limits.rates.items():
        if quota in use.amounts:
            ready_s = ready_at_s(rate, uses.buckets.get(quota, FULL), use.amounts[quota])
            if ready_s > now_s:
                worst = _later(worst, OverQuota(quota, wait_s(ready_s, now_s), uses))
    if worst is not None:
        return worst
    counts = {quota: uses.counts.get(quota, 0) + (quota in use.places) for quota in limits.counts}
    return Granted(Uses(settled(limits, uses, use.amounts, now_s).buckets, counts))


def settled(limits: QuotaLimits, uses: Uses, amounts: Mapping[Quota, float], now_s: float) -> Uses:
    """Charge amounts whether they are there or not; give negative ones back."""
    buckets = dict(uses.buckets)
    for quota, rate in limits.rates.items():
        if quota in amounts:
            buckets[quota] = taken(rate, buckets.get(quota, FULL), amounts[quota], now_s)
    return Uses(buckets, uses.counts)


def standing(limits: QuotaLimits, uses: Uses, now_s: float) -> tuple[Standing, ...]:
    """Return what may still be used of every rate."""
    found = []
    for quota, rate in limits.rates.items():
        bucket = uses.buckets.get(quota, FULL)
        left = max(0.0, remaining(rate, bucket, now_s))
        found.append(Standing(quota, rate.burst, left, max(0.0, bucket.full_at_s - now_s)))
    return tuple(found)


def _later(worst: OverQuota | None, other: OverQuota) -> OverQuota:
    return other if worst is None or other.retry_after_s > worst.retry_after_s else worst
