"""A committed load has the sums that a look at every request would give."""

from __future__ import annotations

import random

import pytest

from services.slo.lengths import LengthForecast, pooled_tail
from services.slo.performance import PerformanceCoefficients, PerformanceModel
from services.slo.planner import Commitment, CommittedLoad

MODEL = PerformanceModel(PerformanceCoefficients(0.01, 1e-4, 1e-7, 0.0, "measured"))


def holding(rng: random.Random) -> Commitment:
    expected = rng.uniform(2, 500)
    forecast = LengthForecast(expected, rng.uniform(0, 1e4), int(expected * rng.uniform(1, 3)) + 1)
    return Commitment(rng.randint(1, 5000), forecast, rng.randint(-1, 1), rng.randint(0, 100), rng.random() < 0.8)


@pytest.mark.parametrize("seed", range(5))
def test_sums_are_those_of_everyone_held(seed: int) -> None:
    rng = random.Random(seed)
    holdings, held = CommittedLoad(2), dict[str, Commitment]()
    for _ in range(400):
        name = f"r{rng.randrange(30)}"
        if rng.random() < 0.6:
            held[name] = holding(rng)
            holdings.put(name, held[name])
        else:
            held.pop(name, None)
            holdings.drop(name)
        assert dict(holdings.held) == held
        assert holdings.decodes == sum(each.decodes for each in held.values())
        for tier in range(2):
            there = [each for each in held.values() if each.tier == tier and each.decodes]
            assert holdings.running[tier] == len(there)
            together = sum(each.prompt_tokens for each in there) + pooled_tail((each.forecast for each in there), 0.99)
            assert holdings.context_tokens[tier] == pytest.approx(together, abs=1)
            assert holdings.context_tokens[tier] <= sum(each.kv_tokens for each in there)
        tail = pooled_tail((each.forecast for each in held.values()), 0.99)
        assert holdings.kv_tokens(0.99) == pytest.approx(
            sum(each.prompt_tokens for each in held.values()) + tail, abs=1
        )


@pytest.mark.parametrize("seed", range(5))
def test_everything_that_decodes_is_released_and_the_last_of_a_group_stands_for_it(seed: int) -> None:
    rng = random.Random(seed)
    holdings = CommittedLoad(2)
    held = [holding(rng) for _ in range(60)]
    for index, each in enumerate(held):
        holdings.put(str(index), each)
    releases = holdings.releases(MODEL)
    decoding = [each for each in held if each.decodes]
    assert sum(release.requests for release in releases) == len(decoding)
    assert sum(release.kv_tokens for release in releases) == sum(each.kv_tokens for each in decoding)
    context = sum(each.prompt_tokens + each.forecast.expected_tokens for each in decoding)
    step_s = MODEL.decode_step_s(len(decoding), int(context))
    for tier in (-1, 0, 1):
        left = [each.forecast.expected_tokens - each.produced_tokens for each in decoding if each.tier == tier]
        last = max(release.at_s for release in releases if release.tier == tier)
        assert last == pytest.approx(max(1.0, *left) * step_s)


def test_releases_follow_what_is_dropped() -> None:
    holdings = CommittedLoad(1)
    assert holdings.releases(MODEL) == ()
    holdings.put("a", Commitment(10, LengthForecast(20.0, 0.0, 30), 0))
    assert [release.kv_tokens for release in holdings.releases(MODEL)] == [40]
    holdings.drop("a")
    holdings.drop("a")
    assert holdings.releases(MODEL) == ()
    assert len(holdings) == 0
