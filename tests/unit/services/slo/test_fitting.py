"""The online fit: it finds the truth, bounds cover what they say, and changes of the machine are learnt."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.slo.fit_quality import FitQuality, quality, replay
from services.slo.fitting import StepTimeFit, fit_all
from services.slo.performance import (
    SMOLLM2_135M_ONE_CORE,
    PerformanceCoefficients,
    PerformanceModel,
    StepCost,
    StepForm,
    StepRegime,
    StepShape,
)
from tests.unit.step_rows import rows

TRUTH = PerformanceCoefficients(12e-3, 60e-6, 0.1e-6, 0.02e-6, "measured", per_request_s=20e-6)
GPU = PerformanceCoefficients(
    3e-3, 60e-6, 0.0, 0.02e-6, "measured", form=StepForm.ROOFLINE, memory=StepCost(18e-3, per_context_token_s=0.15e-6)
)
PRIORS = {
    "exact": TRUTH,
    "half as fast": TRUTH.with_costs(StepCost(*(2 * cost for cost in TRUTH.compute.vector())), StepCost()),
    "unrelated": PerformanceCoefficients(40e-3, 20e-6, 0.0, 0.0, "placeholder"),
}
FACTORS: dict[str, Callable[[int], float]] = {
    "steady": lambda _: 1.0,
    "drifting": lambda index: 1.0 + 0.4 * math.sin(index / 300),
    "slowing": lambda index: 1.0 + index / 4000,
    "shifting": lambda index: 2.0 if 1000 <= index < 2000 else 1.0,
}


def _assert_covers(judged: FitQuality, coverage: float) -> None:
    assert judged.coverage == pytest.approx(coverage, abs=0.02), judged
    for share in judged.coverage_by_regime.values():
        assert share == pytest.approx(coverage, abs=0.03), judged


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("prior", "coverage"), [*((prior, 0.95) for prior in PRIORS), ("exact", 0.99), ("half as fast", 0.9)]
)
def test_bounds_cover_what_they_say(prior: str, factor: str, coverage: float) -> None:
    fit = StepTimeFit(PRIORS[prior])
    steps = rows(TRUTH, 3000, 7, outliers=0.01, factor=FACTORS[factor])
    if prior == "unrelated":
        replay(fit, itertools.islice(steps, 300), coverage)
    _assert_covers(replay(fit, steps, coverage), coverage)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_cover_with_noise_that_lasts(seed: int) -> None:
    steps = rows(TRUTH, 6000, seed, outliers=0.005, correlation=0.8)
    _assert_covers(replay(StepTimeFit(TRUTH), steps, 0.95), 0.95)


def test_the_coefficients_are_found() -> None:
    fit = StepTimeFit(PRIORS["unrelated"])
    judged = replay(fit, rows(TRUTH, 3000, 1, outliers=0.01), 0.95)
    clean = list(rows(TRUTH, 500, 2))
    held_out = quality(clean, fit.model(), fit.bound(0.95))
    assert held_out.r2 > 0.95
    assert held_out.mape < 0.065  # the noise itself has 0.06
    assert judged.steps == fit.steps == 3000
    model = fit.model()
    assert model.scale == pytest.approx(1.0, abs=0.1), "coefficients take over what the scale has learnt"
    assert model.scale * model.coefficients.overhead_s == pytest.approx(12e-3, rel=0.1)
    assert model.scale * model.coefficients.per_token_s == pytest.approx(60e-6, rel=0.1)


def test_a_roofline_is_found_from_a_wrong_one() -> None:
    prior = GPU.with_costs(StepCost(5e-3, 30e-6), StepCost(30e-3, per_context_token_s=0.05e-6))
    fit = StepTimeFit(replace(prior, origin="placeholder"))
    judged = replay(fit, rows(GPU, 4000, 3, outliers=0.01), 0.95)
    _assert_covers(judged, 0.95)
    held_out = quality(list(rows(GPU, 500, 4)), fit.model(), fit.bound(0.95))
    assert held_out.mape < 0.075
    additive = StepTimeFit(PRIORS["unrelated"])
    replay(additive, rows(GPU, 4000, 3, outliers=0.01), 0.95)
    assert quality(list(rows(GPU, 500, 4)), additive.model(), additive.bound(0.95)).mape > 1.15 * held_out.mape


@pytest.mark.parametrize("prior", ["half as fast", "unrelated"])
def test_a_few_steps_help_already(prior: str) -> None:
    clean = list(rows(TRUTH, 300, 9))
    before = quality(clean, PerformanceModel(PRIORS[prior]), PerformanceModel(PRIORS[prior]))
    fit = StepTimeFit(PRIORS[prior])
    replay(fit, rows(TRUTH, 30, 8), 0.95)
    after = quality(clean, fit.model(), fit.bound(0.95))
    assert after.mape < 0.12 < before.mape


def test_what_is_not_seen_moves_with_what_is() -> None:
    """A decode worker on a machine half as fast: its prefill steps, of which it has seen none, are predicted so too."""
    fit = StepTimeFit(TRUTH)
    for index in range(200):
        shape = StepShape(decode_requests=1 + index % 60, decode_tokens=1 + index % 60, decode_context_tokens=5000)
        fit.observe(shape, 2.0 * PerformanceModel(TRUTH).step_s(shape))
    unseen = StepShape(1, 1000, 500_000.0)
    assert fit.model().step_s(unseen) == pytest.approx(2.0 * PerformanceModel(TRUTH).step_s(unseen), rel=0.15)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_shift_is_learnt_within_a_minute_of_slow_steps(factor: float) -> None:
    slow = TRUTH.with_costs(StepCost(*(8 * cost for cost in TRUTH.compute.vector())), StepCost())
    fit = StepTimeFit(slow)
    replay(fit, rows(slow, 400, 5), 0.95)
    usual = fit.bound(0.95).margins
    busy_s = 0.0
    shifted = rows(slow, 2000, 6, factor=lambda _: factor)
    while busy_s < 60.0:
        shape, duration_s = next(shifted)
        busy_s += duration_s
        fit.observe(shape, duration_s)
    assert all(now < 1.3 * then for now, then in zip(fit.bound(0.95).margins, usual, strict=True))
    judged = replay(fit, [next(shifted) for _ in range(300)], 0.95)
    assert judged.mape < 0.09
    assert judged.coverage > 0.91
    assert fit.scale == pytest.approx(factor, rel=0.15)


def test_a_steady_step_that_is_too_quick_counts_as_much_as_one_that_is_too_slow() -> None:
    """Below the bound of outliers the fit follows in both directions alike."""
    shape = StepShape(decode_requests=16, decode_tokens=16, decode_context_tokens=8000)
    moved = []
    for factor in (1.045, 0.955):
        fit = StepTimeFit(TRUTH)
        for _ in range(100):
            fit.observe(shape, PerformanceModel(TRUTH).step_s(shape))
        before_s = fit.model().step_s(shape)
        fit.observe(shape, factor * before_s)
        moved.append(abs(fit.model().step_s(shape) / before_s - 1.0))
    assert moved[1] == pytest.approx(moved[0], rel=0.1)


def test_a_roofline_learns_a_memory_cost_that_its_prior_does_not_have() -> None:
    """Steps of decodes with long contexts take as long as their contexts are read, whatever the prior says."""
    prior = replace(GPU.with_costs(GPU.compute, StepCost(18e-3)), origin="placeholder")
    fit, truth = StepTimeFit(prior), PerformanceModel(GPU)
    for index in range(600):
        shape = StepShape(decode_requests=16, decode_tokens=16, decode_context_tokens=1000 + 400 * (index % 300))
        fit.observe(shape, truth.step_s(shape))
    learnt = fit.model()
    for context_tokens in (1000, 60_000, 120_000):
        shape = StepShape(decode_requests=16, decode_tokens=16, decode_context_tokens=context_tokens)
        assert learnt.step_s(shape) == pytest.approx(truth.step_s(shape), rel=0.03)
    assert learnt.coefficients.memory.per_context_token_s > 0


def test_one_outlier_changes_little() -> None:
    fit = StepTimeFit(TRUTH)
    replay(fit, rows(TRUTH, 500, 1), 0.95)
    shape = StepShape(1, 1000, 500_000.0)
    before_s, scale = fit.model().step_s(shape), fit.scale
    fit.observe(shape, 100.0)
    assert fit.model().step_s(shape) == pytest.approx(before_s, rel=0.05)
    assert fit.scale == pytest.approx(scale, rel=0.05)


def test_bounds_before_any_step_depend_on_where_the_profile_comes_from() -> None:
    measured = StepTimeFit(TRUTH).bound(0.95).margins
    placeholder = StepTimeFit(replace(TRUTH, origin="placeholder")).bound(0.95).margins
    assert all(1.1 < margin < 1.3 for margin in measured)
    assert all(margin > 1.4 for margin in placeholder)
    assert StepTimeFit(TRUTH).error() == 0.0


def test_mixed_steps_narrow_the_bound_of_prefills_seldom_seen() -> None:
    """An engine with streams at hand hardly ever takes a step of prompts alone."""
    prior = replace(TRUTH, origin="placeholder")
    fit, model = StepTimeFit(prior), PerformanceModel(TRUTH)
    for index in range(200):
        shape = StepShape(1, 100 + 7 * index, 50_000.0, 1 + index % 9, 1 + index % 9, 5000)
        fit.observe(shape, (0.98 + 0.04 * (index % 2)) * model.step_s(shape))
    unseen = StepTimeFit(prior).bound(0.99).margins[StepRegime.PREFILL]
    narrowed = fit.bound(0.99).margins[StepRegime.PREFILL]
    assert fit.bound(0.99).margins[StepRegime.MIXED] < narrowed < 1.25 < unseen
    alone = StepShape(1, 500, 125_000.0)
    fit.observe(alone, 1.4 * fit.model().step_s(alone))
    assert fit.bound(0.99).margins[StepRegime.PREFILL] > 1.4


@given(st.floats(0.01, 0.98), st.floats(0.001, 0.01))
@settings(max_examples=30)
def test_more_coverage_is_never_a_lower_bound(coverage: float, more: float) -> None:
    low, high = FITTED.bound(coverage), FITTED.bound(coverage + more)
    assert all(a <= b for a, b in zip(low.margins, high.margins, strict=True))


FITTED = StepTimeFit(TRUTH)
replay(FITTED, rows(TRUTH, 200, 3), 0.95)


@given(
    st.lists(
        st.tuples(
            st.builds(
                StepShape,
                prefill_requests=st.integers(0, 4),
                prefill_tokens=st.integers(0, 4096),
                prefill_attention_pairs=st.floats(0, 1e9),
                decode_requests=st.integers(0, 512),
                decode_tokens=st.integers(0, 2048),
                decode_context_tokens=st.integers(0, 10**7),
                draft_steps=st.integers(0, 10),
            ),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=60,
    ),
    st.sampled_from([TRUTH, GPU, SMOLLM2_135M_ONE_CORE, PerformanceCoefficients(0.0, 0.0, 0.0, 0.0, "placeholder")]),
)
@settings(max_examples=60)
def test_no_report_breaks_it(reports: list[tuple[StepShape, float]], prior: PerformanceCoefficients) -> None:
    fit = StepTimeFit(prior)
    for shape, duration_s in reports:
        fit.observe(shape, duration_s)
    for model in (fit.model(), fit.bound(0.99)):
        assert all(math.isfinite(value) and value >= 0 for value in model.vector)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, math.nan])
def test_a_coverage_is_a_probability(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        StepTimeFit(TRUTH).bound(coverage)


@pytest.mark.parametrize("truth", [TRUTH, GPU])
def test_a_profile_is_fitted_to_all_steps_at_once(truth: PerformanceCoefficients) -> None:
    prior = replace(truth, overhead_s=2 * truth.overhead_s, per_token_s=0.6 * truth.per_token_s, origin="placeholder")
    fitted = PerformanceModel(fit_all(prior, list(rows(truth, 2000, 1, outliers=0.02))))
    model = PerformanceModel(truth)
    errors = [abs(fitted.step_s(shape) / model.step_s(shape) - 1) for shape, _ in rows(truth, 300, 2)]
    assert statistics.mean(errors) < 0.02


@pytest.mark.parametrize("truth", [TRUTH, GPU])
def test_a_few_steps_of_a_warm_up_tell_a_machine_that_is_much_slower_at_prompts(truth: PerformanceCoefficients) -> None:
    prior = replace(truth, per_token_s=truth.per_token_s / 3, per_attention_pair_s=truth.per_attention_pair_s / 3)
    model = PerformanceModel(truth)
    prompts = [
        StepShape(prefill_requests=1, prefill_tokens=tokens, prefill_attention_pairs=tokens**2 / 2)
        for tokens in (2048, 1024, 512, 200, 60)
    ]
    decodes = [
        StepShape(decode_requests=1, decode_tokens=1, decode_context_tokens=tokens) for tokens in (60, 512, 2048)
    ]
    seen = [(shape, model.step_s(shape)) for shape in (*prompts, *decodes * 8)]
    fitted = PerformanceModel(fit_all(prior, seen, outliers=False))
    online = StepTimeFit(prior)
    for shape, took_s in seen:
        online.observe(shape, took_s)
    for prompt in prompts[:3]:
        assert fitted.step_s(prompt) == pytest.approx(model.step_s(prompt), rel=0.1)
        assert online.model().step_s(prompt) == pytest.approx(model.step_s(prompt), rel=0.2)


def test_how_far_a_prior_was_off_does_not_stay_in_the_bounds_of_steps_that_are_rare() -> None:
    """An engine computes prompts alone as it warms up, and from then on hardly ever."""
    fit, slow = StepTimeFit(TRUTH), PerformanceModel(TRUTH, scale=4.0)
    for tokens in (2048, 2048, 1024, 1024, 512, 512, 200, 200, 60, 60):
        shape = StepShape(1, tokens, tokens**2 / 2)
        fit.observe(shape, slow.step_s(shape))
    for index in range(300):
        shape = StepShape(1, 64, 20_000.0, 1 + index % 9, 1 + index % 9, 5000)
        fit.observe(shape, slow.step_s(shape))
    assert all(margin < 1.5 for margin in fit.bound(0.99).margins)
    prompt = StepShape(1, 185, 185**2 / 2)
    assert slow.step_s(prompt) < fit.bound(0.99).step_s(prompt) < 1.5 * slow.step_s(prompt)


@pytest.mark.parametrize("truth", [TRUTH, GPU])
def test_the_bound_of_one_step_is_that_of_the_model(truth: PerformanceCoefficients) -> None:
    fit = StepTimeFit(truth)
    for shape, took_s in rows(truth, 300, 1, outliers=0.02):
        assert fit.bound_s(0.99, shape) == pytest.approx(fit.bound(0.99).step_s(shape), rel=1e-9)
        fit.observe(shape, took_s)
    assert fit.bound_s(0.99, StepShape()) == 0.0


def test_judging_needs_steps() -> None:
    with pytest.raises(ValueError, match="no steps"):
        quality([], PerformanceModel(TRUTH), PerformanceModel(TRUTH))
    assert StepRegime.DECODE in quality(list(rows(TRUTH, 50, 1)), FITTED.model(), FITTED.bound(0.9)).coverage_by_regime


def decodes(requests: int) -> StepShape:
    return StepShape(decode_requests=requests, decode_tokens=requests, decode_context_tokens=100 * requests)


def test_what_is_no_step_is_not_learnt_from() -> None:
    fit = StepTimeFit(TRUTH)
    for shape, took_s in ((StepShape(), 0.1), (decodes(4), math.nan), (decodes(4), 0.0), (decodes(4), 5000.0)):
        fit.observe(shape, took_s)
    assert fit.steps == 0
    assert fit.model() == PerformanceModel(TRUTH)


def test_errors_of_long_ago_do_not_widen_bounds() -> None:
    """A minute of busy time counts, as long as 64 steps do."""
    slow = PerformanceModel(TRUTH, scale=20.0)
    prior = TRUTH.with_costs(TRUTH.compute.scaled(20.0), StepCost())
    fit, shape = StepTimeFit(prior), decodes(64)
    step_s = slow.step_s(shape)
    for index in range(100):
        fit.observe(shape, (0.7 if index % 2 else 1.3) * step_s)
    assert fit.bound(0.9).margins[StepRegime.DECODE] > 1.2
    for _ in range(math.ceil(70.0 / step_s)):
        fit.observe(shape, step_s)
    assert fit.bound(0.99).margins[StepRegime.DECODE] == pytest.approx(1.0, abs=0.05)


def test_long_steps_make_it_forget_sooner_than_short_ones() -> None:
    """Prompts have become dearer, decodes not: no scale says that. Steps of 0.3 s and more tell within 400."""
    slow = TRUTH.with_costs(TRUTH.compute.scaled(10.0), StepCost())
    changed = replace(slow, per_token_s=1.6 * slow.per_token_s)
    fit = StepTimeFit(slow)
    replay(fit, rows(slow, 3000, 1), 0.95)
    replay(fit, rows(changed, 400, 2), 0.95)
    clean = list(rows(changed, 300, 3))
    assert quality(clean, fit.model(), fit.bound(0.95)).mape < 0.07


def test_a_machine_that_has_changed_is_followed_at_once() -> None:
    fit = StepTimeFit(TRUTH)
    replay(fit, rows(TRUTH, 500, 1), 0.95)
    twice = PerformanceModel(TRUTH, scale=2.0)
    shapes = [shape for shape, _ in rows(TRUTH, 12, 2)]
    for shape in shapes:
        fit.observe(shape, twice.step_s(shape))
    errors = [abs(fit.model().step_s(shape) / twice.step_s(shape) - 1) for shape in shapes]
    assert statistics.mean(errors) < 0.012


def test_the_error_is_that_of_the_kinds_of_steps_last_seen() -> None:
    fit, model = StepTimeFit(TRUTH), PerformanceModel(TRUTH)
    for index in range(400):
        shape = decodes(1 + index % 60)
        fit.observe(shape, (0.9 if index % 2 else 1.1) * model.step_s(shape))
    assert fit.error() == pytest.approx(0.1, abs=0.02)


def test_the_error_is_the_mean_of_the_kinds_of_steps_and_not_their_sum() -> None:
    fit, model = StepTimeFit(TRUTH), PerformanceModel(TRUTH)
    for index in range(400):
        shape = decodes(1 + index % 60) if index % 3 else StepShape(1, 500, 125_000.0)
        fit.observe(shape, (0.9 if index % 2 else 1.1) * model.step_s(shape))
    assert fit.error() == pytest.approx(0.1, abs=0.02)


def test_a_lasting_change_ends_up_in_the_coefficients() -> None:
    """The scale is for what is new; what is not observed follows coefficients only."""
    fit = StepTimeFit(TRUTH)
    replay(fit, rows(TRUTH, 2000, 1, factor=lambda _: 1.3), 0.95)
    assert fit.model().scale == pytest.approx(1.0, abs=0.01)
    assert fit.scale == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize(("truth", "factor"), [(TRUTH, 5.0), (GPU, 2.0)])
def test_a_profile_is_fitted_from_a_prior_that_is_far_off(truth: PerformanceCoefficients, factor: float) -> None:
    """Outliers are told by better and better models, and so is which cost of a roofline sets the time."""
    compute = replace(truth.compute, base_s=factor * truth.overhead_s, per_token_s=truth.per_token_s / factor)
    context_s = truth.memory.per_context_token_s / factor
    memory = replace(truth.memory, base_s=factor * truth.memory.base_s, per_context_token_s=context_s)
    prior = replace(truth.with_costs(compute, memory), origin="placeholder")
    fitted, model = PerformanceModel(fit_all(prior, list(rows(truth, 2000, 1, outliers=0.02)))), PerformanceModel(truth)
    errors = [abs(fitted.step_s(shape) / model.step_s(shape) - 1) for shape, _ in rows(truth, 300, 2)]
    assert statistics.mean(errors) < 0.012


def test_errors_may_be_read_by_another_thread_while_steps_are_learnt() -> None:
    fit, shape = (
        StepTimeFit(SMOLLM2_135M_ONE_CORE),
        StepShape(decode_requests=4, decode_tokens=4, decode_context_tokens=400),
    )
    failures: list[Exception] = []
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            try:
                fit.error()
            except RuntimeError as error:
                failures.append(error)
                return

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        for index in range(3000):
            fit.observe(shape, 0.04 + 1e-4 * (index % 7))
    finally:
        done.set()
        scraping.join()
        sys.setswitchinterval(before)
    assert not failures


def test_a_step_that_is_no_number_is_not_learnt_from() -> None:
    fit, shape = (
        StepTimeFit(SMOLLM2_135M_ONE_CORE),
        StepShape(decode_requests=4, decode_tokens=4, decode_context_tokens=400),
    )
    for _ in range(100):
        fit.observe(shape, 0.04)
    fit.observe(replace(shape, prefill_tokens=100, prefill_attention_pairs=math.nan), 0.1)
    for _ in range(10):
        fit.observe(shape, 0.04)
    assert fit.model().decode_step_s(4, 400) == pytest.approx(0.04, rel=0.05)
