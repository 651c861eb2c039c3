"""What a request can expect where it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.latency_forecast import (
    DecodeView,
    Forecast,
    PrefillView,
    QueuedPrefill,
    finish_times_s,
    first_token,
    first_tokens,
    may_be_in_time,
    place_without_promise,
    worst_gap,
)
from services.slo.performance import PerformanceCoefficients, PerformanceModel

MODEL = PerformanceModel(PerformanceCoefficients(0.010, 0.001, 0.0, 0.0, "placeholder"))
BOUND = replace(MODEL, scale=1.15)
PREFILL = PrefillView("p", MODEL, BOUND, max_step_tokens=1000, busy_until_s=0.0, queue=(), kv_tokens=100_000)
DECODE = DecodeView(
    "d",
    MODEL,
    BOUND,
    requests=0,
    context_tokens=0,
    max_running_requests=8,
    kv_tokens_free=100_000,
    kv_tokens=100_000,
    handover_steps=1.5,
    handover_steps_bound=2.0,
)


def test_an_idle_pair() -> None:
    placement = place_without_promise(100, 150, 30.0, [PREFILL], [DECODE], arrival_s=0.0, now_s=0.0)
    assert placement is not None
    assert not placement.local
    assert placement.due_s == 30.0
    ttft, tpot = placement.ttft, placement.tpot
    assert (ttft.expected_s, ttft.bound_s) == pytest.approx((0.110, 0.110 * 1.15))
    assert (tpot.expected_s, tpot.bound_s) == pytest.approx((1.5 * 0.011, 2 * 0.011 * 1.15))


def test_a_transfer_lengthens_the_worst_gap_and_a_local_prefill_has_none() -> None:
    handed_over = worst_gap(100, DECODE, Forecast(0.002, 0.003))
    assert handed_over.expected_s == pytest.approx(1.5 * 0.011 + 0.002)
    assert handed_over.bound_s == pytest.approx(2 * 0.011 * 1.15 + 0.003)
    assert worst_gap(100, DECODE, local=True).expected_s == pytest.approx(0.011)


def test_prompts_due_earlier_are_waited_for_and_later_ones_as_far_as_they_share_the_step() -> None:
    def expected_s(later_tokens: int) -> float:
        queue = (QueuedPrefill(1.0, 50, guaranteed=True), QueuedPrefill(9.0, later_tokens, guaranteed=False))
        return first_token(10, 5.0, replace(PREFILL, queue=queue, busy_until_s=2.0), 1.0, 1.5).expected_s

    assert expected_s(95) == pytest.approx(2.0 + 0.060 + 0.020 - 1.0), "no step is as long as both take"
    assert expected_s(60) == pytest.approx(2.0 + 0.060 + 0.080 - 1.0)


def test_prompts_that_join_together_see_each_other() -> None:
    joining = [QueuedPrefill(due_s, 35, guaranteed=True) for due_s in (3.0, 1.0, 2.0)]
    ends = first_tokens(joining, PREFILL, now_s=1.0)
    assert [end.expected_s for end in ends] == pytest.approx([1.080 + 0.045, 1.080, 1.080])
    assert [end.bound_s for end in ends] == pytest.approx([1 + 0.125 * 1.15, 1 + 0.08 * 1.15, 1 + 0.08 * 1.15])


def test_a_request_larger_than_every_kv_cache_has_no_place() -> None:
    small = replace(DECODE, kv_tokens=149)
    assert place_without_promise(100, 150, 30.0, [PREFILL], [small], 0.0, 0.0) is None
    assert place_without_promise(100, 150, 30.0, [replace(PREFILL, kv_tokens=99)], [DECODE], 0.0, 0.0) is None


def test_a_decode_worker_that_computes_prompts_keeps_them_where_that_is_sooner() -> None:
    lane = replace(PREFILL, worker_id="d", share=0.5)
    queue = (QueuedPrefill(0.0, 800, guaranteed=False),)
    placement = place_without_promise(100, 150, 30.0, [replace(PREFILL, queue=queue), lane], [DECODE], 0.0, 0.0)
    assert placement is not None
    assert placement.local
    assert placement.ttft.expected_s == pytest.approx(2 * first_token(100, 30.0, PREFILL, 0.0, 0.0).expected_s)
    placement = place_without_promise(100, 150, 30.0, [PREFILL, lane], [DECODE], 0.0, 0.0)
    assert placement is not None
    assert not placement.local


@pytest.mark.parametrize("worse", [{"requests": 8}, {"kv_tokens_free": 149}, {"requests": 5}])
def test_the_worker_with_room_is_chosen(worse: dict[str, int]) -> None:
    busy_p = replace(PREFILL, worker_id="p2", busy_until_s=0.5)
    busy_d = replace(DECODE, worker_id="d2", **worse)  # type: ignore[arg-type]
    placement = place_without_promise(100, 150, 30.0, [busy_p, PREFILL], [busy_d, DECODE], 0.0, 0.0)
    assert placement is not None
    assert (placement.prefill_worker_id, placement.decode_worker_id) == ("p", "d")


def test_prompts_of_one_step_end_together() -> None:
    prompts = [QueuedPrefill(0.0, tokens, guaranteed=False) for tokens in (400, 500, 200, 2500)]
    ends_s = finish_times_s(prompts, 1.0, MODEL, max_step_tokens=1000)
    assert ends_s == pytest.approx([1.910, 1.910, 2.120, 2.120 + 3 * 0.010 + 2.5])


def test_no_more_prompts_share_a_step_than_its_time_allows() -> None:
    prompts = [QueuedPrefill(0.0, tokens, guaranteed=True) for tokens in (100, 100, 100)]
    ends_s = finish_times_s(prompts, 0.0, MODEL, max_step_tokens=1000, longest_step_s=0.25)
    assert ends_s == pytest.approx([0.210, 0.210, 0.320])


def test_a_prompt_may_be_in_time_if_an_idle_worker_computes_it_before_it_is_due() -> None:
    """100 tokens take 110 ms, and 1,500 two steps."""
    assert may_be_in_time(100, 50.12, MODEL, max_step_tokens=1000, now_s=50.0)
    assert not may_be_in_time(100, 50.10, MODEL, max_step_tokens=1000, now_s=50.0)
    assert not may_be_in_time(100, 50.12, MODEL, max_step_tokens=1000, now_s=50.02)
    assert not may_be_in_time(1500, 51.515, MODEL, max_step_tokens=1000, now_s=50.0)
    assert not may_be_in_time(100, None, MODEL, max_step_tokens=1000, now_s=50.0)


def test_what_a_worker_has_cached_is_not_computed() -> None:
    other = replace(PREFILL, worker_id="p2")
    cached = (("p2", 60), ("elsewhere", 90))
    placement = place_without_promise(100, 150, 30.0, [PREFILL, other], [DECODE], 0.0, 0.0, cached)
    assert placement is not None
    assert placement.prefill_worker_id == "p2"
    assert placement.ttft.expected_s == pytest.approx(0.010 + 0.040)
    whole = place_without_promise(100, 150, 30.0, [PREFILL, other], [DECODE], 0.0, 0.0, (("p2", 100),))
    assert whole is not None
    assert whole.ttft.expected_s == pytest.approx(0.011), "its last token is computed"


def test_a_worker_that_keeps_the_prompt_needs_memory_for_the_output_too() -> None:
    both = replace(PREFILL, worker_id="d", kv_tokens=149)
    placement = place_without_promise(100, 150, 30.0, [replace(PREFILL, busy_until_s=5.0), both], [DECODE], 0.0, 0.0)
    assert placement is not None
    assert placement.prefill_worker_id == "p"


def test_the_first_token_is_expected_soonest_not_bounded_closest() -> None:
    wide = replace(PREFILL, worker_id="wide", bound=replace(MODEL, scale=3.0))
    placement = place_without_promise(
        100, 150, 30.0, [replace(PREFILL, busy_until_s=0.05), wide], [DECODE], arrival_s=0.0, now_s=0.0
    )
    assert placement is not None
    assert placement.prefill_worker_id == "wide"


def test_the_decode_worker_has_a_slot_first_and_the_shortest_step_then() -> None:
    full = replace(DECODE, worker_id="full", requests=2, max_running_requests=2)
    busy = replace(DECODE, worker_id="busy", requests=5)
    slow = replace(DECODE, worker_id="slow", requests=3, model=replace(MODEL, scale=9.0))

    def chosen(*decode: DecodeView) -> str:
        placement = place_without_promise(100, 150, 30.0, [PREFILL], decode, 0.0, 0.0)
        assert placement is not None
        return placement.decode_worker_id

    assert chosen(full, busy) == "busy"
    assert chosen(slow, busy) == "busy", "though it has more requests"


def test_attention_costs_each_prompt_by_the_square_of_its_length() -> None:
    model = PerformanceModel(PerformanceCoefficients(0.010, 0.001, 0.0, 1e-6, "placeholder"))
    prompts = [QueuedPrefill(0.0, tokens, guaranteed=True) for tokens in (400, 600, 500)]
    ends_s = finish_times_s(prompts, 7.0, model, max_step_tokens=1000)
    first_s = 7.0 + 0.010 + 1.0 + (400**2 + 600**2) / 2 * 1e-6
    assert ends_s == pytest.approx([first_s, first_s, first_s + 0.010 + 0.5 + 500**2 / 2 * 1e-6])


def test_a_step_with_attention_is_full_when_the_next_prompt_would_make_it_too_long() -> None:
    model = PerformanceModel(PerformanceCoefficients(0.010, 0.0, 0.0, 1e-6, "placeholder"))
    prompts = [QueuedPrefill(0.0, 400, guaranteed=True) for _ in range(3)]
    ends_s = finish_times_s(prompts, 0.0, model, max_step_tokens=10_000, longest_step_s=0.180)
    assert ends_s == pytest.approx([0.170, 0.170, 0.260])


COSTLY_CONTEXT = PerformanceModel(PerformanceCoefficients(0.010, 0.0, 1e-5, 0.0, "placeholder", per_request_s=0.001))
"""10 ms a step, 1 ms for each request and 10 us for each context token of a decode."""


def test_the_gap_between_tokens_counts_the_requests_and_contexts_that_are_there_already() -> None:
    busy = replace(
        DECODE, model=COSTLY_CONTEXT, bound=replace(COSTLY_CONTEXT, scale=2.0), requests=4, context_tokens=3000
    )
    step_s = 0.010 + 5 * 0.001 + (3000 + 150) * 1e-5
    gap = worst_gap(150, busy)
    assert (gap.expected_s, gap.bound_s) == pytest.approx((1.5 * step_s, 2.0 * 2.0 * step_s))
    local = worst_gap(150, busy, local=True)
    assert (local.expected_s, local.bound_s) == pytest.approx((step_s, 2.0 * step_s))


def test_the_decode_worker_is_that_whose_step_is_shortest_with_the_request_in_it() -> None:
    def chosen(**there: DecodeView) -> str:
        decode = [replace(view, worker_id=worker_id) for worker_id, view in there.items()]
        placement = place_without_promise(100, 150, 30.0, [PREFILL], decode, 0.0, 0.0)
        assert placement is not None
        return placement.decode_worker_id

    costly = replace(DECODE, model=COSTLY_CONTEXT, bound=COSTLY_CONTEXT)
    long, short = replace(costly, context_tokens=900), replace(costly, context_tokens=800)
    assert chosen(long=long, short=short) == "short"
    # A worker without requests whose every request and context token cost much, against one that has some cheap ones.
    per_request = replace(
        COSTLY_CONTEXT, coefficients=replace(COSTLY_CONTEXT.coefficients, per_request_s=0.004, overhead_s=0.008)
    )
    dear = replace(costly, model=per_request, requests=0)
    assert chosen(dear=dear, cheap=replace(costly, requests=0)) == "cheap", "12 ms with the request, against 11 ms"
    per_context = replace(
        COSTLY_CONTEXT, coefficients=replace(COSTLY_CONTEXT.coefficients, per_context_token_s=1e-4, overhead_s=0.0)
    )
    dear = replace(costly, model=per_context)
    assert chosen(dear=dear, cheap=costly) == "cheap", "16 ms with the request's 150 tokens of context, against 12.5 ms"
