"""Due times of one request on one engine."""

from __future__ import annotations

import math

import pytest

from services.slo.attainment import AttainmentMeter
from services.slo.composer import TokenDeadlines
from services.slo.contract import Contract, DecodeTarget, PrefillTarget


def test_due_times_are_those_by_which_the_router_judges() -> None:
    meter = AttainmentMeter(Contract(PrefillTarget(ttft_s=0.5), (DecodeTarget(0.05),)), arrival_s=10.0)
    deadlines = TokenDeadlines.begin(10.0, 0.5, 0.05, generated_tokens=0)
    for now_s in (10.4, 10.41, 10.5, 10.5, 10.9):
        assert deadlines.due_s == pytest.approx(meter.next_due_s())
        meter.note_tokens(1, now_s)
        deadlines.note_tokens(1, now_s)
    assert deadlines.due_s == pytest.approx(meter.next_due_s())


def test_a_request_that_comes_with_output_goes_on_where_it_was() -> None:
    deadlines = TokenDeadlines.begin(20.0, 0.08, 0.05, generated_tokens=7)
    deadlines.note_tokens(1, 20.01)
    assert deadlines.due_s == pytest.approx(20.13)
    deadlines.note_tokens(3, 20.02)
    assert deadlines.due_s == pytest.approx(20.28)
    assert deadlines.wanted_s == pytest.approx(20.12)


def test_several_first_tokens_at_once_count_from_the_first() -> None:
    deadlines = TokenDeadlines.begin(0.0, 1.0, 0.1, generated_tokens=0)
    deadlines.note_tokens(3, 0.5)
    assert deadlines.due_s == pytest.approx(0.8)
    deadlines.note_tokens(0, 9.0)
    assert deadlines.due_s == pytest.approx(0.8)


def test_without_a_promise_nothing_is_ever_due() -> None:
    deadlines = TokenDeadlines.begin(0.0, None, None, generated_tokens=3)
    deadlines.note_tokens(2, 1.0)
    assert (deadlines.due_s, deadlines.wanted_s, deadlines.tpot_s) == (math.inf, math.inf, math.inf)
    first_only = TokenDeadlines.begin(0.0, 0.5, None, generated_tokens=0)
    assert first_only.due_s == 0.5
    first_only.note_tokens(1, 0.1)
    assert first_only.due_s == math.inf


def test_a_rate_without_a_first_due_time_counts_from_the_first_token() -> None:
    for generated_tokens in (0, 5):
        deadlines = TokenDeadlines.begin(0.0, None, 0.1, generated_tokens)
        assert deadlines.due_s == math.inf
        deadlines.note_tokens(1, 3.0)
        deadlines.note_tokens(1, 3.01)
        assert deadlines.due_s == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("deadline_in_s", "tpot_s"), [(math.nan, 0.1), (math.inf, 0.1), (1.0, 0.0), (1.0, -0.1), (1.0, math.nan)]
)
def test_figures_that_make_no_sense_are_an_error(deadline_in_s: float, tpot_s: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        TokenDeadlines.begin(0.0, deadline_in_s, tpot_s, 0)
