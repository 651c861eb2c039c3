"""Attainment: every token in time, without tolerance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.attainment import AttainmentMeter
from services.slo.contract import MIN_TARGET_S, Contract, DecodeTarget, PrefillTarget

CONTRACT = Contract(prefill=PrefillTarget(ttft_s=1.0), decode=(DecodeTarget(0.1),))


def metered(times_s: list[float], contract: Contract = CONTRACT) -> AttainmentMeter:
    meter = AttainmentMeter(contract, arrival_s=0.0)
    for time_s in times_s:
        meter.note_tokens(1, time_s)
    return meter


def test_tokens_on_time_keep_the_contract() -> None:
    result = metered([1.0, 1.1, 1.2, 1.25]).attainment()
    assert result.kept
    assert result.ttft_s == 1.0
    assert result.stages[0].tokens == 3
    assert result.stages[0].required_tpot_s == pytest.approx(0.1)
    assert result.worst_gap_s == pytest.approx(0.1)


def test_a_late_first_token_is_a_miss() -> None:
    result = metered([1.001]).attainment()
    assert not result.kept
    assert "TTFT" in result.missed


def test_a_stall_is_a_miss_although_the_mean_is_kept() -> None:
    times_s = [1.0, *(1.0 + 0.01 * k for k in range(1, 50)), 1.49 + 4.6]
    result = metered(times_s).attainment()
    assert result.stages[0].mean_tpot_s > 0.1
    fast_end = metered([1.0, 1.25, *(1.25 + 0.001 * k for k in range(1, 100))]).attainment()
    assert fast_end.stages[0].mean_tpot_s < 0.1
    assert not fast_end.kept
    assert fast_end.stages[0].late_tokens >= 1


def test_an_early_token_buys_time_for_the_next() -> None:
    assert metered([0.2, 0.21, 0.4]).attainment().kept


def test_the_next_stage_begins_where_the_marker_came() -> None:
    contract = Contract(decode=(DecodeTarget(0.05, ends_with="</think>"), DecodeTarget(0.2)))
    meter = metered([1.0, 1.05], contract)
    assert meter.stage_marker == "</think>"
    assert meter.current_tpot_s() == 0.05
    meter.end_stage()
    assert meter.stage_marker == ""
    assert meter.next_due_s() == pytest.approx(1.25)
    meter.note_tokens(1, 1.25)
    assert meter.attainment().kept
    assert [stage.tokens for stage in meter.attainment().stages] == [1, 1]


@given(gaps_s=st.lists(st.floats(min_value=0, max_value=0.5), min_size=1, max_size=50))
def test_required_tpot_is_exactly_what_would_have_been_kept(gaps_s: list[float]) -> None:
    times_s = [1.0]
    for gap_s in gaps_s:
        times_s.append(times_s[-1] + gap_s)
    required_s = metered(times_s).attainment().stages[0].required_tpot_s
    looser = Contract(decode=(DecodeTarget(max(MIN_TARGET_S, required_s * 1.000001 + 1e-9)),))
    assert metered(times_s, looser).attainment().kept
    if required_s > 2 * MIN_TARGET_S:
        tighter = Contract(decode=(DecodeTarget(required_s * 0.999),))
        assert not metered(times_s, tighter).attainment().kept


STAGES = Contract(
    prefill=PrefillTarget(ttft_s=1.0),
    decode=(DecodeTarget(0.2, ends_with="<a>"), DecodeTarget(0.05, ends_with="<b>"), DecodeTarget(0.4)),
)


def begun(contract: Contract = CONTRACT, first_s: float = 100.75) -> AttainmentMeter:
    """Return the meter of a request that arrived at 100 s and has its first token."""
    meter = AttainmentMeter(contract, arrival_s=100.0)
    meter.note_tokens(1, first_s)
    return meter


def test_of_tokens_that_come_together_those_already_due_are_late() -> None:
    meter = begun()
    meter.note_tokens(3, 101.0)
    (stage,) = meter.attainment().stages
    assert (stage.tokens, stage.late_tokens) == (3, 2), "due at 100.85, 100.95 and 101.05"
    assert stage.required_tpot_s == pytest.approx(0.25)
    assert stage.mean_tpot_s == pytest.approx(0.25 / 3)
    assert meter.attainment().missed == "token 1 of decode stage 1 was 150.0 ms late"
    meter.note_tokens(3, 101.4)
    (stage,) = meter.attainment().stages
    assert (stage.tokens, stage.late_tokens) == (6, 5), "due at 101.15, 101.25 and 101.35"
    assert stage.required_tpot_s == pytest.approx(0.25)
    assert meter.attainment().missed == "token 1 of decode stage 1 was 150.0 ms late", "the first miss is told"


def test_a_token_is_late_after_it_was_due_and_not_at_that_time() -> None:
    exact = Contract(prefill=PrefillTarget(ttft_s=0.75), decode=(DecodeTarget(0.25),))
    meter = begun(exact)
    meter.note_tokens(1, 101.0)
    meter.note_tokens(1, 101.25)
    assert meter.attainment().kept
    assert not meter.missed
    meter.note_tokens(1, 101.5625)
    assert meter.missed
    assert meter.attainment().missed == "token 3 of decode stage 1 was 62.5 ms late"


def test_a_late_first_token_is_told_with_its_target() -> None:
    meter = begun(first_s=101.5)
    assert meter.attainment().missed == "TTFT 1.500 s > 1.000 s"
    assert meter.attainment().ttft_s == pytest.approx(1.5)
    assert meter.attainment().target_ttft_s == 1.0


def test_the_first_tokens_may_come_together() -> None:
    meter = AttainmentMeter(CONTRACT, arrival_s=100.0)
    meter.note_tokens(0, 100.5)
    assert meter.attainment().ttft_s is None
    meter.note_tokens(3, 100.75)
    result = meter.attainment()
    assert (result.ttft_s, result.worst_gap_s) == (0.75, 0.0)
    assert (result.stages[0].tokens, result.stages[0].began_s) == (2, 100.75)
    assert result.kept


def test_the_next_token_is_due_by_the_target_of_the_stage_on_the_meters_clock() -> None:
    meter = AttainmentMeter(CONTRACT, arrival_s=100.0)
    assert meter.next_due_s() == 101.0
    meter.note_tokens(1, 100.5)
    assert meter.next_due_s() == pytest.approx(100.6)
    meter.note_tokens(2, 100.55)
    assert meter.next_due_s() == pytest.approx(100.8)


def test_nothing_is_due_without_targets() -> None:
    meter = AttainmentMeter(Contract(), arrival_s=100.0)
    assert (meter.next_due_s(), meter.current_tpot_s(), meter.tightest_tpot_s(), meter.stage_marker) == (
        None,
        None,
        None,
        "",
    )
    meter.note_tokens(2, 500.0)
    assert meter.next_due_s() is None
    result = meter.attainment()
    assert result.kept
    assert (result.target_ttft_s, result.stages[0].target_tpot_s) == (None, None)


def test_the_tightest_target_is_looked_for_from_the_current_stage_on() -> None:
    meter = AttainmentMeter(STAGES, arrival_s=100.0)
    seen = [(meter.current_tpot_s(), meter.tightest_tpot_s(), meter.stage_marker)]
    meter.note_tokens(1, 100.5)
    for _ in range(4):
        seen.append((meter.current_tpot_s(), meter.tightest_tpot_s(), meter.stage_marker))
        meter.end_stage()
    first, second, last = (0.2, 0.05, "<a>"), (0.05, 0.05, "<b>"), (0.4, 0.4, "")
    assert seen == [first, first, second, last, last]


def test_no_stage_ends_before_the_first_token() -> None:
    meter = AttainmentMeter(STAGES, arrival_s=100.0)
    meter.end_stage()
    assert meter.attainment().stages == ()


def test_every_stage_is_measured_from_the_token_that_ended_the_one_before() -> None:
    meter = begun(STAGES, first_s=100.5)
    meter.note_tokens(1, 100.6)
    meter.note_tokens(1, 100.9)
    meter.end_stage()
    meter.note_tokens(1, 100.93)
    meter.note_tokens(2, 101.14)
    result = meter.attainment()
    thinking, answer = result.stages
    assert (thinking.tokens, thinking.late_tokens, thinking.began_s, thinking.target_tpot_s) == (2, 0, 100.5, 0.2)
    assert thinking.mean_tpot_s == pytest.approx(0.2)
    assert thinking.required_tpot_s == pytest.approx(0.2)
    assert (answer.tokens, answer.late_tokens, answer.began_s, answer.target_tpot_s) == (3, 2, 100.9, 0.05)
    assert answer.mean_tpot_s == pytest.approx(0.08)
    assert answer.required_tpot_s == pytest.approx(0.12)
    assert result.required_tpot_s == pytest.approx(0.2)
    assert result.mean_tpot_s == pytest.approx((2 * 0.2 + 3 * 0.08) / 5)
    assert result.worst_gap_s == pytest.approx(0.3)
    assert result.missed == "token 2 of decode stage 2 was 140.0 ms late"


def test_means_need_a_second_token() -> None:
    result = begun().attainment()
    assert (result.mean_tpot_s, result.required_tpot_s, result.stages[0].mean_tpot_s) == (None, 0.0, 0.0)
    nothing = AttainmentMeter(CONTRACT, arrival_s=100.0).attainment()
    assert (nothing.ttft_s, nothing.mean_tpot_s, nothing.required_tpot_s, nothing.stages) == (None, None, 0.0, ())


def test_a_task_is_late_after_its_deadline_and_says_by_how_much() -> None:
    for end_s, missed in ((110.0, ""), (110.25, "the task was done 0.250 s after its deadline")):
        meter = AttainmentMeter(Contract(), arrival_s=100.0, task_due_s=110.0)
        meter.end(end_s)
        assert meter.attainment().missed == missed
    untimed = AttainmentMeter(Contract(), arrival_s=100.0)
    untimed.end(1e9)
    assert untimed.attainment().kept


def test_the_text_of_the_last_stage_ends_nothing() -> None:
    meter = AttainmentMeter(Contract(decode=(DecodeTarget(0.05, ends_with="x"),)), arrival_s=100.0)
    meter.note_tokens(2, 101.0)
    assert meter.stage_marker == ""
