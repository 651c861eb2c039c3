"""Each kind and outcome has a bucket of lines of its own."""

from __future__ import annotations

from services.audit.event import EventKind, Outcome
from services.audit.rates import Rates

REFUSED_CANCEL = (EventKind.CANCEL, Outcome.REFUSED)
DONE_CANCEL = (EventKind.CANCEL, Outcome.DONE)


def test_a_burst_is_told_and_then_the_rate() -> None:
    rates = Rates(lines_per_s=2.0, burst_lines=5.0)
    assert [rates.take(REFUSED_CANCEL, 100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [rates.take(REFUSED_CANCEL, 101.0) for _ in range(3)] == [True, True, False]
    assert rates.told() == {REFUSED_CANCEL: 3}


def test_a_bucket_never_holds_more_than_a_burst() -> None:
    rates = Rates(lines_per_s=2.0, burst_lines=3.0)
    assert rates.take(REFUSED_CANCEL, 100.0)
    assert [rates.take(REFUSED_CANCEL, 10_000.0) for _ in range(4)] == [True, True, True, False]


def test_a_flood_of_one_sort_hides_none_of_another() -> None:
    rates = Rates(lines_per_s=1.0, burst_lines=1.0)
    assert rates.take(REFUSED_CANCEL, 100.0)
    assert not rates.take(REFUSED_CANCEL, 100.0)
    assert rates.take(DONE_CANCEL, 100.0)


def test_what_was_told_is_not_told_again() -> None:
    rates = Rates(lines_per_s=1.0, burst_lines=1.0)
    rates.take(REFUSED_CANCEL, 100.0)
    assert not rates.suppressed
    rates.take(REFUSED_CANCEL, 100.0)
    assert rates.suppressed
    assert rates.told() == {REFUSED_CANCEL: 1}
    assert not rates.suppressed
    assert rates.told() == {}
