"""Token buckets against an exact account of levels, and what they promise for every sequence of charges."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.quotas.token_bucket import (
    FULL,
    MAX_DEBT_S,
    Bucket,
    Rate,
    ready_at_s,
    remaining,
    taken,
    wait_s,
)

START_S = 1000.0
TICK_S = 1 / 64
"""Times are whole ticks and rates powers of two, so that floats are exact."""
exact_rates = st.builds(Rate, st.sampled_from([0.5, 1.0, 4.0, 64.0]), st.integers(1, 200).map(float))
exact_charges = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 250)), max_size=40)
"""Ticks since the charge before, and the amount."""


class Level:
    """The content of a bucket, kept as a level that fills as time passes."""

    def __init__(self, rate: Rate) -> None:
        self._per_s, self._burst, self._largest = Fraction(rate.per_s), Fraction(rate.burst), Fraction(rate.largest)
        self.level = self._burst

    def passes(self, seconds: Fraction) -> None:
        self.level = min(self._burst, self.level + seconds * self._per_s)

    def take(self, amount: int) -> bool:
        if amount > self._largest or self.level < min(Fraction(amount), self._burst):
            return False
        self.level -= amount
        return True


@given(exact_rates, exact_charges)
def test_grants_what_an_exact_account_of_levels_grants(rate: Rate, charges: list[tuple[int, int]]) -> None:
    level, bucket, now_s = Level(rate), FULL, START_S
    for ticks, amount in charges:
        now_s += ticks * TICK_S
        level.passes(Fraction(ticks, 64))
        granted = ready_at_s(rate, bucket, amount) <= now_s
        assert granted is level.take(amount)
        if granted:
            bucket = taken(rate, bucket, amount, now_s)
        assert remaining(rate, bucket, now_s) == level.level


@given(exact_rates, exact_charges, st.sampled_from([2, 4]))
def test_a_share_lets_amounts_above_its_burst_through_on_credit(
    rate: Rate, charges: list[tuple[int, int]], sharers: int
) -> None:
    share = rate.share(sharers)
    level, bucket, now_s = Level(share), FULL, START_S
    for ticks, amount in charges:
        now_s += ticks * TICK_S
        level.passes(Fraction(ticks, 64))
        granted = ready_at_s(share, bucket, amount) <= now_s
        assert granted is level.take(amount)
        assert granted or amount > rate.burst or ready_at_s(share, bucket, amount) < math.inf
        if granted:
            bucket = taken(share, bucket, amount, now_s)


rates = st.builds(Rate, st.floats(1e-3, 1e6), st.floats(1, 1e6))
charges = st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 2)), max_size=40)
"""Seconds since the charge before, and the amount as a multiple of the burst."""


@given(rates, charges)
def test_in_any_window_no_more_than_rate_times_time_and_a_burst(rate: Rate, asked: list[tuple[float, float]]) -> None:
    bucket, now_s = FULL, START_S
    granted: list[tuple[float, float]] = []
    for gap_s, share in asked:
        now_s += gap_s
        amount = share * rate.burst
        if ready_at_s(rate, bucket, amount) <= now_s:
            bucket = taken(rate, bucket, amount, now_s)
            granted.append((now_s, amount))
    for first, (from_s, _) in enumerate(granted):
        used = 0.0
        for at_s, amount in granted[first:]:
            used += amount
            assert used <= (rate.per_s * (at_s - from_s) + rate.burst) * (1 + 1e-9) + rate.per_s * 1e-9


@given(rates, st.floats(0, 1e4), st.floats(0.001, 1), st.floats(0, 1e9))
def test_the_wait_is_exact(rate: Rate, full_in_s: float, share: float, now_s: float) -> None:
    bucket, amount = Bucket(now_s + full_in_s), share * rate.burst
    ready_s = ready_at_s(rate, bucket, amount)
    later_s = now_s + wait_s(ready_s, now_s)
    assert later_s >= ready_s
    assert later_s <= max(ready_s, now_s) + 2 * math.ulp(max(later_s, 1.0))


def test_a_wait_that_a_float_cannot_hold_is_rounded_up() -> None:
    ready_s, now_s = 2.0**52 + 1, 0.5
    assert now_s + (ready_s - now_s) < ready_s
    assert now_s + wait_s(ready_s, now_s) >= ready_s


@given(exact_rates, st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50), st.integers(0, 50)), max_size=40))
def test_what_is_given_back_never_gains_anything(rate: Rate, uses: list[tuple[int, int, int]]) -> None:
    """Reservations are settled as the next one comes; in all, no more is used than a rate and a burst allow."""
    bucket, now_s, used, owed = FULL, START_S, 0, 0
    for ticks, reserved, really in uses:
        now_s += ticks * TICK_S
        if owed:
            bucket = taken(rate, bucket, owed, now_s)
        owed = 0
        if ready_at_s(rate, bucket, reserved) <= now_s:
            assert used + reserved <= rate.per_s * (now_s - START_S) + rate.burst
            bucket = taken(rate, bucket, reserved, now_s)
            used += really
            owed = really - reserved


def test_a_debt_is_paid_by_the_rate() -> None:
    rate = Rate(per_s=10.0, burst=20.0)
    bucket = taken(rate, FULL, 120.0, START_S)
    assert remaining(rate, bucket, START_S) == -100.0
    assert ready_at_s(rate, bucket, 5.0) == START_S + 10.5
    assert remaining(rate, bucket, START_S + 12.0) == 20.0


def test_a_debt_beyond_a_day_is_forgiven() -> None:
    rate = Rate(per_s=1.0, burst=10.0)
    bucket = taken(rate, FULL, 1e12, START_S)
    assert remaining(rate, bucket, START_S) == -MAX_DEBT_S


def test_more_than_the_largest_is_never_let_through() -> None:
    assert ready_at_s(Rate(1.0, 10.0), FULL, 10.5) == math.inf
    assert ready_at_s(Rate(1.0, 10.0, largest=11.0), FULL, 10.5) == -math.inf


@pytest.mark.parametrize("figures", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, 2.0, 1.0)])
def test_a_rate_that_makes_no_sense_is_not_made(figures: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"per_s|burst|largest"):
        Rate(*figures)
