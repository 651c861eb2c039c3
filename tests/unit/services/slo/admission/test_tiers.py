"""Tiers tell as many rates apart as a round can, and never count a stream at a looser rate than its own."""

from __future__ import annotations

import pytest

from services.slo.admission.tiers import NO_PROMISE_S, TierBook, tier_of, tiers_of
from services.slo.planner.worker_profile import MAX_TIERS


def test_every_rate_is_a_tier_as_long_as_there_are_enough() -> None:
    assert tiers_of([0.1, 0.05, 0.1]).tpot_s == (0.05, 0.1)
    assert tiers_of([]).tpot_s == (NO_PROMISE_S,)
    rates = [0.01 * (index + 1) for index in range(MAX_TIERS)]
    assert tiers_of(rates).tpot_s == tuple(rates)


def test_too_many_rates_share_the_tighter_ones() -> None:
    rates = [0.01 * (index + 1) for index in range(MAX_TIERS + 1)]
    assert tiers_of(rates).tpot_s == tuple(rates[::2])


def test_drafts_are_counted_where_there_are_any() -> None:
    drafting = tiers_of([0.05, 0.1], draft_tokens=3, draft_acceptance=0.7)
    assert (drafting.acceptance, drafting.max_draft_tokens) == ((0.7, 0.7), 3)
    assert tiers_of([0.05, 0.1], draft_tokens=0, draft_acceptance=0.7).acceptance == ()


@pytest.mark.parametrize(("tpot_s", "tier"), [(None, -1), (0.05, 0), (0.07, 0), (0.1, 1), (9.0, 2)])
def test_a_rate_has_the_loosest_tier_that_keeps_it(tpot_s: float | None, tier: int) -> None:
    assert tier_of(tpot_s, tiers_of([0.05, 0.1, 0.2])) == tier


def test_a_rate_tighter_than_every_tier_has_none() -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of `max`, whose words are Python's
        tier_of(0.04, tiers_of([0.05]))


def test_tiers_stay_while_they_tell_apart_what_is_asked_for() -> None:
    book = TierBook()
    first = book.covering([0.05, 0.1])
    assert book.covering([0.1]) is first
    assert book.cover([0.05])
    assert not book.cover([0.07])
    both = book.covering([0.07])
    assert both.tpot_s == (0.05, 0.07, 0.1), "what was told apart before still is"


def test_rates_of_before_go_when_there_are_too_many() -> None:
    book = TierBook()
    book.covering([0.01 * (index + 1) for index in range(MAX_TIERS)])
    assert book.covering([0.5, 0.6]).tpot_s == (0.5, 0.6)
