"""The step that leaves prefills the most time, and the draft lengths that go with it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_instances import ADDITIVE, ROOFLINE
from benchmarks.planner_reference import best_step
from services.slo.planner import StepBound, Tiers, WorkerProfile
from services.slo.planner.kernels.step_table import counted_tokens
from tests.unit.services.slo.planner.step_choice import chosen_step

PLAIN = WorkerProfile(StepBound(overhead_s=0.01, per_token_s=0.0001), Tiers((0.05, 0.1)), max_step_tokens=8192)


def test_without_decodes_steps_are_as_long_as_the_batch_allows() -> None:
    step = chosen_step(PLAIN, (0, 0), (0, 0))
    assert step is not None
    assert step.step_s == pytest.approx(0.01 + 8191 * 0.0001)
    assert step.draft_tokens == (0, 0)


def test_the_tightest_tier_sets_the_step() -> None:
    loose = chosen_step(PLAIN, (0, 100), (0, 0))
    tight = chosen_step(PLAIN, (1, 100), (0, 0))
    assert loose is not None
    assert tight is not None
    assert loose.step_s == pytest.approx(0.1, abs=0.001)
    assert tight.step_s == pytest.approx(0.05, abs=0.001)
    # A step of 0.1 s, less 0.01 s, 100 decodes and a token of rounding; one of 0.05 s with half the decodes.
    assert loose.capacity_s == pytest.approx(0.0001 * (900 - 100), rel=0.01)
    assert tight.capacity_s == pytest.approx(0.0001 * (400 - 51), rel=0.01)


def test_decodes_beyond_the_rate_leave_no_step() -> None:
    assert chosen_step(PLAIN, (500, 0), (0, 0)) is None


def test_drafts_are_the_fewest_that_keep_each_tiers_rate() -> None:
    tiers = Tiers((0.05, 0.1), acceptance=(0.8, 0.8), max_draft_tokens=4)
    profile = WorkerProfile(StepBound(overhead_s=0.02, per_token_s=0.00002), tiers, max_step_tokens=100_000)
    step = chosen_step(profile, (20, 20), (0, 0))
    assert step is not None
    for tpot_s, drafts in zip(tiers.tpot_s, step.draft_tokens, strict=True):
        assert tpot_s * counted_tokens(0.8, drafts) >= step.step_s - 1e-9
        assert drafts == 0 or tpot_s * counted_tokens(0.8, drafts - 1) < step.step_s
    assert step.draft_tokens[0] > step.draft_tokens[1]
    assert step.step_s > 0.05


@settings(max_examples=150)
@given(
    counts=st.lists(st.integers(0, 300), min_size=3, max_size=3),
    tokens=st.integers(1, 4000),
    alphas=st.lists(st.floats(0, 0.95), min_size=3, max_size=3),
    drafts=st.integers(0, 3),
    bound=st.sampled_from([ADDITIVE, ROOFLINE]),
    most=st.sampled_from([64, 512, 8192]),
)
def test_the_step_equals_trying_every_combination_of_drafts(
    counts: list[int], tokens: int, alphas: list[float], drafts: int, bound: StepBound, most: int
) -> None:
    profile = WorkerProfile(bound, Tiers((0.03, 0.05, 0.12), tuple(alphas), drafts), most)
    contexts = tuple(count * tokens for count in counts)
    step = chosen_step(profile, counts, contexts)
    expected = best_step(profile, tuple(counts), contexts)
    assert (step is None) == (expected is None)
    if step is not None and expected is not None:
        assert step.capacity_s / step.step_s == pytest.approx(expected.capacity_s / expected.full_s, abs=1e-6)
