"""Headers of rate limits as OpenAI's clients read them."""

from __future__ import annotations

import pytest

from services.contract.rate_limits import duration, rate_limit_headers
from services.slo.quotas import Quota, Standing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.0, "0ms"), (0.0002, "1ms"), (0.25, "250ms"), (1.0, "1s"), (6.5, "6.5s"), (59.9995, "1m0s")),
        *((90.0, "1m30s"), (7200.0, "2h0m0s"), (90061.25, "25h1m1.25s"), (0.05 + 1e-9, "50ms")),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_of_two_kinds_of_tokens_the_scarcer_is_told() -> None:
    prompt = Standing(Quota.PROMPT_TOKENS, 1000.0, 999.99999999, 1e-10)
    output = Standing(Quota.OUTPUT_TOKENS, 500.0, 17.9, 9.642)
    told = {
        "x-ratelimit-limit-tokens": "500",
        "x-ratelimit-remaining-tokens": "17",
        "x-ratelimit-reset-tokens": "9.642s",
    }
    assert rate_limit_headers((prompt, output)) == rate_limit_headers((output, prompt)) == told
    assert rate_limit_headers((prompt,))["x-ratelimit-remaining-tokens"] == "1000"


def test_what_openai_has_no_header_for_has_none() -> None:
    assert rate_limit_headers((Standing(Quota.QUOTES, 5.0, 1.0, 4.0),)) == {}
    assert rate_limit_headers((Standing(Quota.REQUESTS, 5.0, 1.0, 4.0),)) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "4s",
    }
