"""All quotas of a tenant together: charged at once or not at all, and who is told to wait for how long."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from services.slo.quotas import (
    Granted,
    OverQuota,
    Quota,
    QuotaLimits,
    Rate,
    Standing,
    Use,
    Uses,
    decide,
    settled,
    standing,
)
from services.slo.quotas.decision import COUNT_RETRY_S, RATES

START_S = 1000.0
LIMITS = QuotaLimits(
    {Quota.REQUESTS: Rate(1.0, 2.0), Quota.PROMPT_TOKENS: Rate(100.0, 1000.0), Quota.OUTPUT_TOKENS: Rate(50.0, 500.0)},
    {Quota.CONCURRENT_REQUESTS: 2},
)


def request(prompt_tokens: float, output_tokens: float) -> Use:
    amounts = {Quota.REQUESTS: 1.0, Quota.PROMPT_TOKENS: prompt_tokens, Quota.OUTPUT_TOKENS: output_tokens}
    return Use(amounts, (Quota.CONCURRENT_REQUESTS, Quota.QUEUE_PLACES))


def granted(answer: Granted | OverQuota) -> Uses:
    assert isinstance(answer, Granted), answer
    return answer.uses


def test_what_is_refused_is_not_charged_at_all() -> None:
    first = granted(decide(LIMITS, Uses(), request(900, 10), START_S))
    refused = decide(LIMITS, first, request(200, 10), START_S)
    assert refused == OverQuota(Quota.PROMPT_TOKENS, 1.0)
    assert granted(decide(LIMITS, first, request(100, 490), START_S)).counts[Quota.CONCURRENT_REQUESTS] == 2


def test_the_quota_to_wait_longest_for_is_named() -> None:
    uses = granted(decide(LIMITS, Uses(), request(1000, 500), START_S))
    assert decide(LIMITS, uses, request(100, 200), START_S) == OverQuota(Quota.OUTPUT_TOKENS, 4.0)
    assert decide(LIMITS, uses, request(500, 200), START_S) == OverQuota(Quota.PROMPT_TOKENS, 5.0)
    assert decide(LIMITS, uses, request(1001, 200), START_S) == OverQuota(Quota.PROMPT_TOKENS, math.inf)


def test_a_count_at_its_limit_refuses() -> None:
    uses = Uses(counts={Quota.CONCURRENT_REQUESTS: 2})
    assert decide(LIMITS, uses, request(1, 1), START_S) == OverQuota(Quota.CONCURRENT_REQUESTS, COUNT_RETRY_S)
    assert isinstance(decide(LIMITS, uses, Use({Quota.REQUESTS: 1.0}), START_S), Granted)


def test_what_is_unlimited_is_neither_refused_nor_kept() -> None:
    uses = granted(decide(QuotaLimits(), Uses(), request(1e9, 1e9), START_S))
    assert uses == Uses()


def test_output_is_settled_in_either_direction() -> None:
    reserved = granted(decide(LIMITS, Uses(), request(1, 400), START_S))
    back = settled(LIMITS, reserved, {Quota.OUTPUT_TOKENS: 40 - 400}, START_S + 1.0)
    assert standing(LIMITS, back, START_S + 1.0)[2] == Standing(Quota.OUTPUT_TOKENS, 500.0, 500.0, 0.0)
    debt = settled(LIMITS, reserved, {Quota.OUTPUT_TOKENS: 1000 - 400}, START_S + 1.0)
    assert standing(LIMITS, debt, START_S + 1.0)[2] == Standing(Quota.OUTPUT_TOKENS, 500.0, 0.0, 19.0)
    assert decide(LIMITS, debt, Use({Quota.OUTPUT_TOKENS: 50.0}), START_S + 1.0) == OverQuota(Quota.OUTPUT_TOKENS, 10.0)


def test_routers_that_do_not_know_of_each_other_share() -> None:
    share = LIMITS.share(4)
    assert share.rates[Quota.PROMPT_TOKENS] == Rate(25.0, 250.0, largest=1000.0)
    assert share.counts == {Quota.CONCURRENT_REQUESTS: 1}
    uses = granted(decide(share, Uses(), request(600, 1), START_S))
    assert decide(share, uses, request(25, 1), START_S) == OverQuota(Quota.PROMPT_TOKENS, 15.0)


limits = st.builds(
    QuotaLimits,
    st.dictionaries(st.sampled_from(RATES), st.builds(Rate, st.floats(0.1, 1e4), st.floats(1, 1e4))),
    st.dictionaries(st.just(Quota.CONCURRENT_REQUESTS), st.integers(1, 3)),
)
uses_asked = st.lists(
    st.tuples(
        st.floats(0, 50),
        st.builds(
            Use,
            st.dictionaries(st.sampled_from(RATES), st.floats(0.1, 2e4)),
            st.sampled_from([(), (Quota.CONCURRENT_REQUESTS,)]),
        ),
    ),
    max_size=25,
)


@given(limits, uses_asked)
def test_whoever_comes_back_when_told_is_let_through(limits: QuotaLimits, asked: list[tuple[float, Use]]) -> None:
    now_s, uses = START_S, Uses()
    for gap_s, use in asked:
        now_s += gap_s
        answer = decide(limits, uses, use, now_s)
        if isinstance(answer, Granted):
            uses = answer.uses
            continue
        assert answer.retry_after_s > 0
        if answer.quota is Quota.CONCURRENT_REQUESTS:
            assert uses.counts[answer.quota] >= limits.counts[answer.quota]
        elif math.isinf(answer.retry_after_s):
            assert use.amounts[answer.quota] > limits.rates[answer.quota].largest
        else:
            again = decide(limits, uses, use, now_s + answer.retry_after_s)
            assert isinstance(again, Granted) or again.quota is Quota.CONCURRENT_REQUESTS
            if answer.retry_after_s > 1e-6:
                assert isinstance(decide(limits, uses, use, now_s + answer.retry_after_s * 0.999), OverQuota)
