"""Attainment: every token in time, without tolerance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, PrefillTarget

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
    looser = Contract(decode=(DecodeTarget(required_s * 1.000001 + 1e-9),))
    assert metered(times_s, looser).attainment().kept
    if required_s > 1e-6:
        tighter = Contract(decode=(DecodeTarget(required_s * 0.999),))
        assert not metered(times_s, tighter).attainment().kept
