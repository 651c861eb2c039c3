"""The statistics below the fitted models, one by one: regression, window of ratios, detector of shifts."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.regression import (
    EAGER_UPDATES,
    LAZY_STRIDE,
    LONGEST_S,
    SHORTEST_S,
    RatioWindow,
    RelativeRegression,
    ShiftDetector,
    _nonnegative_solution,
    _quantile,
    credible,
    spread_of,
)

MADE_UP = 20
"""Ratios that stand in a new window for what is expected before anything is seen."""


def seen(*ratios: float, length: int = 1000) -> RatioWindow:
    """Return a window that holds these ratios alone."""
    window = RatioWindow(0.0, length, horizon_s=1.0, at_least=1)
    for ratio in ratios:
        window.add(ratio, at_s=100.0)
    return window


@pytest.mark.parametrize(
    ("duration_s", "taken"),
    [
        (SHORTEST_S, True),
        (LONGEST_S, True),
        (SHORTEST_S / 2, False),
        (LONGEST_S * 1.001, False),
        (-1.0, False),
        (math.nan, False),
        (math.inf, False),
    ],
)
def test_durations_between_a_tenth_of_a_microsecond_and_an_hour_are_believed(duration_s: float, *, taken: bool) -> None:
    assert credible(duration_s) is taken


@given(
    st.lists(st.lists(st.floats(-2, 2), min_size=4, max_size=4), min_size=4, max_size=8),
    st.lists(st.floats(-5, 5), min_size=4, max_size=4),
)
def test_the_best_solution_without_negative_terms_is_found(rows: list[list[float]], target: list[float]) -> None:
    """A solution is best if no term can be raised to gain, and those above zero can neither be lowered."""
    matrix = np.array(rows)
    information, wanted = matrix.T @ matrix + 0.1 * np.eye(4), np.array(target)
    solution = _nonnegative_solution(information, wanted)
    gradient = information @ solution - wanted
    assert (solution >= 0).all()
    assert (gradient >= -1e-6).all()
    assert gradient[solution > 1e-9] == pytest.approx(0.0, abs=1e-6)


def test_a_term_that_leaves_can_come_back() -> None:
    information = np.array([[10.0, 9.0, 3.0], [9.0, 10.0, 9.0], [3.0, 9.0, 30.0]])
    for target in ([1.0, -1.0, 1.0], [5.0, 8.0, -1.0], [1.0, 5.0, 30.0]):
        solution = _nonnegative_solution(information, np.array(target))
        gradient = information @ solution - np.array(target)
        assert (gradient >= -1e-9).all()
        assert float(gradient @ solution) == pytest.approx(0.0, abs=1e-9)


def test_the_prior_stands_until_something_is_observed() -> None:
    regression = RelativeRegression([2.0, 0.0], [2.0, 5.0], 0.3, 1.0)
    assert regression.coefficients.tolist() == [2.0, 0.0]
    assert regression.predict(np.array([3.0, 7.0])) == 6.0
    regression.solve()
    assert regression.coefficients.tolist() == pytest.approx([2.0, 0.0])


def test_both_coefficients_are_learnt_relative_to_their_units() -> None:
    regression = RelativeRegression([1e-3, 1e-6], [1e-3, 1e-6], 1.0, 1.0)
    truth = np.array([3e-3, 0.5e-6])
    for count in range(60):
        regressors = np.array([1.0, 1000.0 * (count % 7)])
        regression.update(regressors, float(regressors @ truth) / regression.predict(regressors), 1.0)
    assert regression.coefficients == pytest.approx(truth, rel=0.02)


def test_what_is_no_longer_observed_drifts_back_to_the_prior() -> None:
    regression = RelativeRegression([1.0, 1.0], [1.0, 1.0], 0.5, 0.0)
    for _ in range(30):
        regression.update(np.array([0.0, 1.0]), 3.0 / regression.predict(np.array([0.0, 1.0])), 0.9)
    assert regression.coefficients[1] == pytest.approx(3.0, rel=0.05)
    for _ in range(60):
        regression.update(np.array([1.0, 0.0]), 1.0, 0.9)
    assert regression.coefficients[1] == pytest.approx(1.0, abs=0.1)


def test_a_factor_common_to_all_moves_what_is_not_observed() -> None:
    regression = RelativeRegression([1.0, 1.0], [1.0, 1.0], 0.1, 1.0)
    for _ in range(50):
        regression.update(np.array([1.0, 0.0]), 2.0 / regression.predict(np.array([1.0, 0.0])), 1.0)
    assert regression.coefficients == pytest.approx([2.0, 2.0], rel=0.05)


def test_later_updates_are_solved_for_at_every_fourth() -> None:
    regression, regressors = RelativeRegression([1.0], [1.0], 1.0, 1.0), np.array([1.0])
    for _ in range(EAGER_UPDATES):
        before = regression.coefficients[0]
        regression.update(regressors, 1.5, 1.0)
        assert regression.coefficients[0] > before
    solved = 0
    for _ in range(5 * LAZY_STRIDE):
        before = regression.coefficients[0]
        regression.update(regressors, 1.5, 1.0)
        solved += regression.coefficients[0] != before
    assert solved == 5


def test_rescaling_multiplies_what_was_learnt_and_keeps_it() -> None:
    regression = RelativeRegression([1.0, 2.0], [1.0, 1.0], 1.0, 1.0)
    regression.update(np.array([1.0, 1.0]), 1.2, 1.0)
    before = regression.coefficients
    regression.rescale(4.0)
    assert regression.coefficients == pytest.approx(4.0 * before)
    regression.solve()
    assert regression.coefficients == pytest.approx(4.0 * before)


def test_spread_is_half_the_width_of_the_middle_two_thirds() -> None:
    assert spread_of([float(value) for value in range(101)]) == pytest.approx((84 - 16) / 2)
    assert spread_of([5.0]) == 0.0
    assert seen(*(float(value) for value in range(101))).spread() == pytest.approx((84 - 16) / 2)


def test_a_new_window_is_as_wide_as_it_is_told() -> None:
    window = RatioWindow(0.3, 100)
    assert len(window) == MADE_UP
    assert window.quantile(0.5) == pytest.approx(1.0, abs=0.1)
    assert window.spread() == pytest.approx(0.3, abs=0.03)
    assert not window.only_seen
    assert (window.largest_seen(), window.mean_error()) == (0.0, 0.0)
    assert RatioWindow(0.0, 100).quantile(0.99) == 1.0


def test_made_up_ratios_leave_evenly_and_first() -> None:
    window = RatioWindow(0.3, MADE_UP)
    for _ in range(10):
        window.add(1.0, at_s=50.0)
    assert window._sorted[0] < 0.85, "what is left of them is still wide to both sides"
    assert window._sorted[-1] > 1.3
    assert not window.only_seen
    for _ in range(10):
        window.add(1.0, at_s=50.0)
    assert window.only_seen
    assert window.spread() == 0.0


@pytest.mark.parametrize(("level", "expected"), [(0.5, 50), (0.95, 95), (0.951, 96), (0.999, 99), (0.001, 1)])
def test_a_quantile_counts_the_next_value_in(level: float, expected: int) -> None:
    # 99 values make a hundred places for the next one.
    assert _quantile([float(value) for value in range(1, 100)], level) == expected


def test_the_quantiles_of_a_window_are_those_of_its_ratios() -> None:
    rng = random.Random(5)
    window = seen(*(rng.uniform(1.0, 2.0) for _ in range(900)))
    for level in (0.1, 0.5, 0.9, 0.95):
        assert window.quantile(level) == pytest.approx(1.0 + level, abs=0.05)


def test_the_level_is_raised_where_ratios_keep_growing() -> None:
    growing = seen(*(1.0 + 0.01 * number for number in range(100)))
    assert growing.quantile(0.5) == pytest.approx(1.99), "each was above all before it, and so will be the next"


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, math.nan])
def test_a_coverage_lies_between_zero_and_one(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        seen(1.0).quantile(coverage)


def test_a_window_keeps_the_latest() -> None:
    window = seen(*(float(number) for number in range(1, 31)), length=10)
    assert (len(window), window.largest_seen()) == (10, 30.0)
    window.drop_newest(9)
    assert window.largest_seen() == 21.0


def test_what_is_older_than_the_horizon_goes_while_enough_remain() -> None:
    window = RatioWindow(0.0, 100, horizon_s=10.0, at_least=3)
    for number in range(5):
        window.add(2.0, at_s=100.0 + number)
    assert len(window) == 5, "the made-up ones are older than anything"
    window.add(1.0, at_s=112.0)
    assert len(window) == 4, "those of 100 and 101 s are over 10 s old, that of 102 s is not"
    window.add(1.0, at_s=200.0)
    assert len(window) == 3


def test_the_newest_can_be_forgotten_and_one_always_stays() -> None:
    window = seen(1.0, 2.0, 3.0, 9.0, 8.0)
    window.drop_newest(2)
    assert (len(window), window.largest_seen()) == (3, 3.0)
    window.drop_newest(50)
    assert (len(window), window.largest_seen()) == (1, 1.0)


def test_the_mean_error_is_relative_to_what_was_observed() -> None:
    window = RatioWindow(0.3, 100)
    for ratio in (2.0, 0.5, 1.0):
        window.add(ratio, at_s=0.0)
    assert window.mean_error() == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert window.largest_seen() == 2.0


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_things_have_changed_when_half_of_the_latest_are_off_to_one_side(side: float) -> None:
    detector = ShiftDetector(5, 2.5)
    told = [detector.add(np.array([1.0]), 1.0, side * deviation) for deviation in (0.0, 0.0, 2.5, 2.5, 2.4, 2.5)]
    assert told == [False, False, False, False, False, True]


def test_what_is_off_to_both_sides_is_no_change() -> None:
    detector = ShiftDetector(5, 2.5)
    assert not any(detector.add(np.array([1.0]), 1.0, deviation) for deviation in (9.0, 0.0, -9.0, 9.0, -9.0) * 4)


def test_after_a_change_the_regression_fits_the_latest_and_the_detector_begins_anew() -> None:
    regression, detector = RelativeRegression([1.0], [1.0], 1.0, 1.0), ShiftDetector(3, 2.5)
    for observed in (4.0, 6.0, 5.0):
        detector.add(np.array([1.0]), observed, 9.0)
    detector.follow(regression)
    assert regression.predict(np.array([1.0])) == pytest.approx(5.0)
    assert not detector.add(np.array([1.0]), 4.0, 9.0)
    assert not detector.add(np.array([1.0]), 4.0, 9.0)
    assert detector.add(np.array([1.0]), 4.0, 9.0)
