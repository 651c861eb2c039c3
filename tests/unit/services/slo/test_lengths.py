"""Output lengths: quantiles that cover, given what was produced, for whoever has been seen."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.slo.lengths import AT_RISK, REFORECAST_TOKENS, LengthForecast, OutputLengths, pooled, pooled_tail

LIMIT = 1_000_000


def _taught(lengths: list[int], application: str = "chat", tenant: str = "t") -> OutputLengths:
    outputs = OutputLengths()
    for tokens in lengths:
        outputs.observe(tenant, application, tokens, complete=True)
    return outputs


def _tail(outputs: OutputLengths, coverage: float, produced: int = 0, limit: int = LIMIT) -> int:
    return outputs.forecast("t", "chat", coverage, limit, produced).tail_tokens


@given(
    st.lists(st.integers(1, 3000), max_size=300),
    st.floats(0.02, 0.97),
    st.floats(0.001, 0.02),
    st.integers(0, 4000),
    st.integers(1, 5000),
    st.none() | st.integers(1, 5000),
)
@settings(max_examples=150)
def test_forecasts_are_in_order_and_in_bounds(
    lengths: list[int], coverage: float, more: float, produced: int, limit: int, hint: int | None
) -> None:
    outputs = _taught(lengths)
    low = outputs.forecast("t", "chat", coverage, limit, produced, hint)
    high = outputs.forecast("t", "chat", coverage + more, limit, produced, hint)
    assert low.tail_tokens <= high.tail_tokens
    bound = min(limit, hint) if hint is not None and hint > produced else limit
    for forecast in (low, high):
        assert produced <= forecast.tail_tokens <= max(bound, produced)
        assert produced <= forecast.expected_tokens <= max(bound, produced)
        assert math.isfinite(forecast.variance)
        assert forecast.variance >= 0
        if bound > produced:
            assert forecast.tail_tokens > produced


def test_quantiles_are_those_of_what_was_seen() -> None:
    outputs = _taught(list(range(1, 1001)))
    assert _tail(outputs, 0.5) == pytest.approx(500, abs=25)
    assert _tail(outputs, 0.95) == pytest.approx(950, abs=25)
    assert _tail(outputs, 0.5, produced=800) == pytest.approx(900, abs=25)
    expected = outputs.forecast("t", "chat", 0.5, LIMIT)
    assert expected.expected_tokens == pytest.approx(500, abs=25)
    assert math.sqrt(expected.variance) == pytest.approx(1000 / math.sqrt(12), rel=0.1)
    assert outputs.forecast("t", "chat", 0.5, LIMIT, 500).expected_tokens == pytest.approx(750, abs=25)


def test_a_tail_allows_for_one_output_longer_than_all_seen() -> None:
    outputs = _taught([10 * number for number in range(1, 51)])
    # Of 51 outputs, the one to come among them, 46 are needed for nine tenths, and all for 99 %.
    assert _tail(outputs, 0.9) == 460
    assert _tail(outputs, 0.99) == LIMIT
    assert _tail(outputs, 0.99, limit=480) == 480


def test_mean_and_variance_are_those_of_the_survival_curve() -> None:
    outputs = _taught([100] * 40 + [300] * 40)
    alive = 41 / 81
    mean = 100 + 200 * alive
    forecast = outputs.forecast("t", "chat", 0.5, LIMIT)
    assert forecast.expected_tokens == pytest.approx(mean)
    assert forecast.variance == pytest.approx(100**2 + (300**2 - 100**2) * alive - mean**2)
    begun = outputs.forecast("t", "chat", 0.5, LIMIT, 60)
    assert (begun.expected_tokens, begun.variance) == pytest.approx((mean, forecast.variance))
    limited = outputs.forecast("t", "chat", 0.5, 200)
    assert limited.expected_tokens == pytest.approx(100 + 100 * alive)
    assert limited.variance == pytest.approx(100**2 + (200**2 - 100**2) * alive - (100 + 100 * alive) ** 2)
    late = outputs.forecast("t", "chat", 0.5, LIMIT, 200)
    assert (late.expected_tokens, late.variance, late.tail_tokens) == pytest.approx((300, 0, 300))


def test_of_equal_lengths_the_complete_outputs_count_before_those_cut_off() -> None:
    outputs = OutputLengths()
    for _ in range(40):
        outputs.observe("t", "chat", 100, complete=False)
        outputs.observe("t", "chat", 100, complete=True)
    # Half of them end at 100 while the other half is still running: 41 of 81 are longer.
    assert _tail(outputs, 1 - 41 / 81 - 0.001) == 100
    assert _tail(outputs, 1 - 41 / 81 + 0.001) == LIMIT


@pytest.mark.parametrize(("made_at", "tail", "last"), [(100, 1000, 99 + REFORECAST_TOKENS), (100, 105, 104)])
def test_a_forecast_serves_for_sixteen_tokens_and_never_past_its_tail(made_at: int, tail: int, last: int) -> None:
    forecast = LengthForecast(104.0, 4.0, tail)
    assert forecast.serves(made_at, last)
    assert not forecast.serves(made_at, last + 1)


def test_a_few_more_outputs_are_counted_in_when_they_are_one_in_fifty() -> None:
    outputs = _taught([10] * 200)
    assert _tail(outputs, 0.99) == 10
    for _ in range(4):
        outputs.observe("t", "chat", 2000, complete=True)
    assert _tail(outputs, 0.99) == 10
    outputs.observe("t", "chat", 2000, complete=True)
    assert _tail(outputs, 0.99) == 2000


def test_before_anything_is_seen_lengths_are_those_of_public_traces() -> None:
    outputs = OutputLengths()
    assert _tail(outputs, 0.5) == pytest.approx(128, rel=0.02)
    assert _tail(outputs, 0.8413) == pytest.approx(128 * math.exp(1.2), rel=0.04)


def test_what_is_cut_off_counts_as_longer() -> None:
    rng = random.Random(1)
    outputs = OutputLengths()
    for _ in range(900):
        tokens, cut = round(rng.expovariate(1 / 200)) + 1, rng.choice([50, 100, 2000])
        outputs.observe("t", "chat", min(tokens, cut), complete=tokens <= cut)
    assert _tail(outputs, 0.5) == pytest.approx(200 * math.log(2), rel=0.15)
    assert _tail(outputs, 0.9) == pytest.approx(200 * math.log(10), rel=0.2)


def test_a_hint_bounds_until_it_is_void() -> None:
    outputs = _taught([1000] * 100)
    assert outputs.forecast("t", "chat", 0.9, 4000, 0, hint_tokens=200).tail_tokens == 200
    assert outputs.forecast("t", "chat", 0.9, 4000, 199, hint_tokens=200).tail_tokens == 200
    assert outputs.forecast("t", "chat", 0.9, 4000, 200, hint_tokens=200).tail_tokens == 1000
    assert outputs.forecast("t", "chat", 0.9, 300, 0).tail_tokens == 300
    assert outputs.forecast("t", "chat", 0.9, 300, 300).tail_tokens == 300


def test_the_narrowest_group_that_knows_enough_is_asked() -> None:
    outputs = OutputLengths()
    for _ in range(AT_RISK):
        outputs.observe("a", "chat", 100, complete=True)
        outputs.observe("b", "chat", 300, complete=True)
        outputs.observe("b", "code", 20, complete=True)

    def median(tenant: str, application: str, produced: int = 0) -> int:
        return outputs.forecast(tenant, application, 0.6, 5000, produced).tail_tokens

    assert median("a", "chat") == 100
    assert median("b", "code") == 20
    assert median("unseen", "chat") == 300  # half 100, half 300
    assert median("a", "chat", produced=150) == 300  # its tenant has seen none that long
    assert median("unseen", "unseen") == 100
    assert median("a", "chat", produced=1000) > 1000  # nobody has: the prior


def test_the_latest_outputs_count() -> None:
    outputs = _taught([1000] * 2000 + [10] * 1200)
    assert _tail(outputs, 0.99) == 10


def test_tenants_do_not_fill_the_memory() -> None:
    outputs = OutputLengths(max_groups=50)
    for number in range(1000):
        outputs.observe(f"tenant {number}", f"application {number}", 10, complete=True)
    assert len(outputs._groups) == 50


def test_many_outputs_together_need_less_than_their_tails() -> None:
    rng = random.Random(3)
    outputs = _taught([round(rng.lognormvariate(5, 1)) + 1 for _ in range(1000)])
    forecasts = [outputs.forecast("t", "chat", 0.95, 4000) for _ in range(64)]
    pooled = pooled_tail(forecasts, 0.95)
    assert pooled < 0.7 * sum(forecast.tail_tokens for forecast in forecasts)
    within = sum(sum(min(4000, round(rng.lognormvariate(5, 1)) + 1) for _ in range(64)) <= pooled for _ in range(1000))
    assert within / 1000 == pytest.approx(0.95, abs=0.03)
    assert pooled_tail(forecasts[:1], 0.95) <= forecasts[0].tail_tokens
    assert pooled_tail([], 0.95) == 0.0
    assert pooled_tail([LengthForecast(10.0, 0.0, 10)], 0.95) == 10.0


@pytest.mark.parametrize("coverage", [0.0, 1.0, math.nan])
def test_a_coverage_is_a_probability(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        OutputLengths().forecast("t", "chat", coverage, 100)


def _made_up(kind: str, count: int) -> list[int]:
    """Lengths of an application: one that answers briefly with bursts of long answers, or two applications in one."""
    rng = random.Random(kind)
    if kind == "bursty":
        return [1 + round(rng.lognormvariate(3, 0.9) * (8 if index // 50 % 7 == 0 else 1)) for index in range(count)]
    return [1 + round(rng.lognormvariate(*rng.choice(((3.5, 0.5), (5.5, 0.8))))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["bursty", "mixed"])
@pytest.mark.parametrize("coverage", [0.9, 0.95, 0.99])
def test_tails_cover_what_they_say(kind: str, coverage: float) -> None:
    lengths = _made_up(kind, 6000)
    for produced in (0, 50):
        outputs = OutputLengths()
        covered = seen = 0
        for index, tokens in enumerate(lengths):
            if index >= 200 and tokens > produced:
                seen += 1
                covered += tokens <= outputs.forecast("t", kind, coverage, 8192, produced).tail_tokens
            outputs.observe("t", kind, tokens, complete=True)
        assert seen > 1000
        assert covered / seen == pytest.approx(coverage, abs=0.025)


def _survival(outputs: list[tuple[int, bool]], tokens: int) -> float:
    """Kaplan and Meier's probability that an output is longer, with one more output that is longer than all seen."""
    survival = 1.0
    at_risk = len(outputs) + 1
    for length, cut in sorted(outputs):
        if length <= tokens and not cut:
            survival *= 1 - 1 / at_risk
        at_risk -= 1
    return survival


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=60),
    st.integers(0, 50),
    st.integers(2, 80),
    st.floats(0.05, 0.95),
)
@settings(max_examples=150)
def test_forecasts_are_those_of_the_survival_curve(
    seen: list[tuple[int, bool]], produced: int, limit: int, coverage: float
) -> None:
    seen = [*seen, *((produced + 1 + index, index % 2 == 0) for index in range(AT_RISK))]
    limit += produced
    outputs = OutputLengths()
    for tokens, cut in seen:
        outputs.observe("t", "chat", tokens, complete=not cut)
    forecast = outputs.forecast("t", "chat", coverage, limit, produced)
    alive = _survival(seen, produced)
    last = min(limit, max(tokens for tokens, _ in seen))
    left = [_survival(seen, tokens) / alive for tokens in range(produced, last)]
    remaining = max(1.0, sum(left))
    square = sum(((index + 1) ** 2 - index**2) * share for index, share in enumerate(left))
    assert forecast.expected_tokens == pytest.approx(min(limit, produced + remaining))
    assert forecast.variance == pytest.approx(max(0.0, square - remaining**2), abs=1e-6)
    enough = [
        tokens
        for tokens, _ in sorted(seen)
        if tokens > produced and _survival(seen, tokens) / alive <= 1 - coverage + 1e-12
    ]
    assert forecast.tail_tokens == min(limit, enough[0] if enough else limit)


def test_the_sum_of_many_is_normal_and_of_few_the_sum_of_tails() -> None:
    assert pooled(1000.0, 400.0, 5000, 0.99) == pytest.approx(1000 + 2.3263 * 20, abs=0.01)
    assert pooled(1000.0, 400.0, 5000, 0.5) == pytest.approx(1000)
    assert pooled(1000.0, 400.0, 1020, 0.99) == 1020
    assert pooled(10.0, -1e-9, 50, 0.99) == pytest.approx(10)
    many = [LengthForecast(10.0, 4.0, 30)] * 100
    assert pooled_tail(many, 0.99) == pytest.approx(pooled(1000.0, 400.0, 3000, 0.99))


def test_outputs_as_long_as_the_request_already_is_do_not_tell_how_it_goes_on() -> None:
    outputs = _taught([100] * 2 * AT_RISK)
    assert outputs.forecast("t", "chat", 0.9, 5000, 99).tail_tokens == 100
    assert outputs.forecast("t", "chat", 0.9, 5000, 100) == OutputLengths().forecast("t", "chat", 0.9, 5000, 100)


def test_a_request_with_one_token_left_has_that_length() -> None:
    outputs = _taught([1000] * 100)
    for produced in (9, 10, 12):
        length = max(10, produced)
        assert outputs.forecast("t", "chat", 0.9, 10, produced) == LengthForecast(float(length), 0.0, length)


def test_rounding_takes_no_forecast_out_of_its_bounds() -> None:
    longer = _taught([1] + [500] * 40).forecast("t", "chat", 0.5, limit_tokens=9, produced_tokens=6)
    assert longer.expected_tokens == 9.0, "without the bound 2e-15 more"
    shorter = _taught([1] + [4] * 40).forecast("t", "chat", 0.5, limit_tokens=6, produced_tokens=3)
    assert shorter.expected_tokens >= 4.0, "without the bound 4e-16 less"
    assert min(longer.variance, shorter.variance) >= 0.0
