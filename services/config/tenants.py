"""The options of tenants: what each may use of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from services.config.section import Section
from services.slo.contract import MAX_VALUE, MIN_VALUE
from services.slo.quotas import Quota, QuotaLimits, Rate

DEFAULT_TENANT = "default"
"""Name under which the options of all tenants stand that are not named."""
DEFAULT_BURST_S = 10.0
"""Seconds of a rate that may be used at once where no burst is given: long enough for what people do in bunches, and
short enough that the rate is seen to hold within a minute."""
PerSecond = Annotated[float, Field(ge=1e-3, le=1e9)]
"""A rate: between one in a quarter of an hour and far more than a cluster computes."""
Weight = Annotated[float, Field(ge=1e-3, le=1e3)]
"""A share beside others: far enough apart for any purpose, and near enough that sums and shares of them stay exact."""
Amount = Annotated[float, Field(ge=1, le=1e12)]


class TenantSettings(Section):
    """What one tenant may use of the whole cluster; the tenant `default` stands for every tenant that is not named."""

    cache_group: str = ""
    """Name of a group of tenants that find each other's prompts in prefix caches, which tells each of them what others
    of the group have sent. Empty: the tenant shares with nobody. Only where `router.cache_isolation` keeps tenants
    apart."""
    weight: Weight = 1.0
    """Share of the capacity for promises that this tenant gets under overload, relative to the weights of others."""
    concurrent_requests: PositiveInt | None = None
    """Number of requests at the same time, from their acceptance to their end."""
    queue_places: PositiveInt | None = None
    """Number of requests that may wait in routers at the same time, for their verdict or for room on a worker. Every
    request waits for a moment, so that a small number also refuses requests that arrive together."""
    requests_per_s: PerSecond | None = None
    """Number of requests a second."""
    requests_burst: Amount | None = None
    """Number of requests at once. Unset: those of 10 s, and at least 1."""
    prompt_tokens_per_s: PerSecond | None = None
    """Number of prompt tokens a second, those found in a prefix cache included."""
    prompt_tokens_burst: Amount | None = None
    """Number of prompt tokens at once; a longer prompt is refused for ever. Unset: those of 10 s."""
    output_tokens_per_s: PerSecond | None = None
    """Number of output tokens a second. A request reserves its expected length, and what it produces is settled when it
    ends."""
    output_tokens_burst: Amount | None = None
    """Number of output tokens at once. Unset: those of 10 s."""
    quotes_per_s: PerSecond | None = None
    """Number of calls of `Quote` a second."""
    quotes_burst: Amount | None = None
    """Number of calls of `Quote` at once. Unset: those of 10 s, and at least 1."""
    watch_updates_per_s: PerSecond | None = None
    """Number of states of the cluster a second that all who watch it for this tenant are sent together."""
    watch_updates_burst: Amount | None = None
    """Number of such states at once. Unset: those of 10 s, and at least 1."""
    max_value: Annotated[float, Field(ge=MIN_VALUE, le=MAX_VALUE)] | None = None
    """Largest `value` of a contract, a profile's included; a request that asks for more is refused."""

    @model_validator(mode="after")
    def _bursts_have_rates(self) -> Self:
        for rate, burst in _RATES.values():
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise ValueError(f"{burst} needs {rate}: without a rate it is unlimited")
        return self

    @property
    def quotas(self) -> QuotaLimits:
        """Return the quotas; empty ones if nothing is limited."""
        rates = {}
        for quota, (rate, burst) in _RATES.items():
            per_s = getattr(self, rate)
            if per_s is not None:
                rates[quota] = Rate(per_s, getattr(self, burst) or max(1.0, per_s * DEFAULT_BURST_S))
        counts = {
            Quota.CONCURRENT_REQUESTS: self.concurrent_requests,
            Quota.QUEUE_PLACES: self.queue_places,
        }
        limited = {quota: limit for quota, limit in counts.items() if limit is not None}
        return QuotaLimits(rates, limited, self.max_value)


_RATES: Mapping[Quota, tuple[str, str]] = {
    Quota.REQUESTS: ("requests_per_s", "requests_burst"),
    Quota.PROMPT_TOKENS: ("prompt_tokens_per_s", "prompt_tokens_burst"),
    Quota.OUTPUT_TOKENS: ("output_tokens_per_s", "output_tokens_burst"),
    Quota.QUOTES: ("quotes_per_s", "quotes_burst"),
    Quota.WATCH_UPDATES: ("watch_updates_per_s", "watch_updates_burst"),
}
"""The options of each rate by its quota: the rate, and the burst."""
