"""The headers by which OpenAI's API tells its clients what is left of their rate limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

from services.slo.quotas import Quota

RATE_LIMIT_PREFIX = "x-ratelimit-"
ROUNDING = 1e-3
"""Part of a token, or of a millisecond, by which a figure may be off without being shown as one less or more."""
_KINDS: Mapping[str, str] = {
    Quota.REQUESTS: "requests",
    Quota.PROMPT_TOKENS: "tokens",
    Quota.OUTPUT_TOKENS: "tokens",
}
"""The kind in the header's name of each quota that has headers."""


class RateLimit(Protocol):
    """What may still be used of one quota, in whichever form it comes."""

    @property
    def quota(self) -> str: ...
    @property
    def limit(self) -> float: ...
    @property
    def remaining(self) -> float: ...
    @property
    def reset_s(self) -> float: ...


def rate_limit_headers(limits: Iterable[RateLimit]) -> dict[str, str]:
    """Return limit, remaining and reset of requests and of tokens, as far as they are limited.

    There is one kind of tokens in these headers; of prompt and output tokens the one is told of which less is left.
    """
    scarcest: dict[str, RateLimit] = {}
    for each in limits:
        kind = _KINDS.get(each.quota)
        if kind is not None and (kind not in scarcest or each.remaining < scarcest[kind].remaining):
            scarcest[kind] = each
    headers = {}
    for kind, each in scarcest.items():
        headers[f"{RATE_LIMIT_PREFIX}limit-{kind}"] = str(math.floor(each.limit))
        headers[f"{RATE_LIMIT_PREFIX}remaining-{kind}"] = str(math.floor(each.remaining + ROUNDING))
        headers[f"{RATE_LIMIT_PREFIX}reset-{kind}"] = duration(each.reset_s)
    return headers


def duration(seconds: float) -> str:
    """Return a time as these headers write it: `250ms`, `6.5s`, `1m30s` or `2h0m0s`; rounded up to milliseconds."""
    whole_ms = math.ceil(seconds * 1e3 - ROUNDING)
    if whole_ms < 1000:
        return f"{whole_ms}ms"
    minutes, rest_ms = divmod(whole_ms, 60_000)
    text = f"{rest_ms / 1e3:g}s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"
