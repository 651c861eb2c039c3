"""Due times."""

from __future__ import annotations

import math

import pytest

from services.slo.attainment import AttainmentMeter
from services.slo.composer import TightestTpot, TokenDeadlines
from services.slo.contract import Contract, DecodeTarget, PrefillTarget


def test_due_times_are_those_by_which_the_router_judges() -> None:
    meter = AttainmentMeter(Contract(PrefillTarget(ttft_s=0.5), (DecodeTarget(0.05),)), arrival_s=10.0)
    promise = TokenDeadlines.begin(10.0, 0.5, 0.05, generated_tokens=0)
    for now_s in (10.4, 10.41, 10.5, 10.5, 10.9):
        assert promise.due_s == pytest.approx(meter.next_due_s())
        meter.tokens(1, now_s)
        promise.tokens(1, now_s)
    assert promise.due_s == pytest.approx(meter.next_due_s())


def test_a_request_that_comes_with_output_goes_on_where_it_was() -> None:
    promise = TokenDeadlines.begin(20.0, 0.08, 0.05, generated_tokens=7)
    promise.tokens(1, 20.01)
    assert promise.due_s == pytest.approx(20.13)
    promise.tokens(3, 20.02)
    assert promise.due_s == pytest.approx(20.28)
    assert promise.wanted_s == pytest.approx(20.12)


def test_several_first_tokens_at_once_count_from_the_first() -> None:
    promise = TokenDeadlines.begin(0.0, 1.0, 0.1, generated_tokens=0)
    promise.tokens(3, 0.5)
    assert promise.due_s == pytest.approx(0.8)
    promise.tokens(0, 9.0)
    assert promise.due_s == pytest.approx(0.8)


def test_without_a_promise_nothing_is_ever_due() -> None:
    promise = TokenDeadlines.begin(0.0, None, None, generated_tokens=3)
    promise.tokens(2, 1.0)
    assert (promise.due_s, promise.wanted_s, promise.tpot_s) == (math.inf, math.inf, math.inf)
    first_only = TokenDeadlines.begin(0.0, 0.5, None, generated_tokens=0)
    assert first_only.due_s == 0.5
    first_only.tokens(1, 0.1)
    assert first_only.due_s == math.inf


def test_a_rate_without_a_first_due_time_counts_from_the_first_token() -> None:
    for generated_tokens in (0, 5):
        promise = TokenDeadlines.begin(0.0, None, 0.1, generated_tokens)
        assert promise.due_s == math.inf
        promise.tokens(1, 3.0)
        promise.tokens(1, 3.01)
        assert promise.due_s == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("deadline_in_s", "tpot_s"), [(math.nan, 0.1), (math.inf, 0.1), (1.0, 0.0), (1.0, -0.1), (1.0, math.nan)]
)
def test_figures_that_make_no_sense_are_an_error(deadline_in_s: float, tpot_s: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        TokenDeadlines.begin(0.0, deadline_in_s, tpot_s, 0)


def test_pace_is_the_tightest_of_late() -> None:
    pace = TightestTpot(remembered_s=10.0)
    assert pace.tpot_s(0.0) == math.inf
    for now_s, tpot_s in ((0.0, 0.1), (1.0, 0.05), (2.0, 0.2), (3.0, math.inf), (3.0, math.nan)):
        pace.note(tpot_s, now_s)
    assert pace.tpot_s(3.0) == 0.05
    assert pace.tpot_s(11.5) == 0.2
    assert pace.tpot_s(0.0) == 0.2, "a clock that goes backwards brings nothing back"
    assert pace.tpot_s(12.5) == math.inf
