"""When prompts end: by hand where steps are simple, and against the model written once more in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.planner_instances import ADDITIVE, ROOFLINE
from benchmarks.planner_reference import Schedule
from services.slo.planner import PromisedPrefill, StepBound, Tiers, Worker, WorkerProfile
from services.slo.planner.kernels.layout import (
    FITS,
    JOB_COLUMNS,
    JOB_DUE_S,
    JOB_KV_TOKENS,
    JOB_LIMIT_S,
    JOB_LOCAL_TIER,
    JOB_WORK_S,
    LACKS_DECODE_RATE,
    LACKS_PREFILL_TIME,
    SCHEDULE_LOAD,
    SCHEDULE_START_S,
    SCHEDULE_USED_S,
)
from services.slo.planner.kernels.schedule import advance, begin, end_of, keeps_up, queue_position
from tests.unit.services.slo.planner.simple import TIERS, ask, colocated, decide, decoder, plan, prefiller


def ends_s(workers: list[Worker], *prompts: tuple[int, float]) -> list[float | None]:
    """Return when prompts of so many tokens, due at these times, end on workers."""
    asked = [ask(f"c{index}", tokens, deadline_s=due_s) for index, (tokens, due_s) in enumerate(prompts)]
    return [decision.expected_first_token_s for decision in plan(workers, *asked).decisions]


class TestByHand:
    def test_a_prompt_that_fits_into_a_step_takes_no_longer_than_it_must(self) -> None:
        assert ends_s([prefiller(), decoder()], (50, 1.0)) == [pytest.approx(0.06)]

    def test_a_longer_prompt_takes_whole_steps_and_the_rest(self) -> None:
        # Four steps of 99 ms with 89 tokens each, and one of 44 tokens.
        assert ends_s([prefiller(), decoder()], (400, 1.0)) == [pytest.approx(4 * 0.099 + 0.054)]

    def test_nothing_begins_before_the_present_step_ends(self) -> None:
        assert ends_s([prefiller(busy_s=0.03), decoder()], (50, 1.0)) == [pytest.approx(0.09)]

    def test_what_streams_are_ahead_shortens_the_first_step(self) -> None:
        assert ends_s([prefiller(busy_s=0.03, ahead_s=0.02), decoder()], (50, 1.0)) == [pytest.approx(0.07)]

    def test_prompts_share_a_step(self) -> None:
        assert ends_s([prefiller(), decoder()], (30, 1.0), (40, 2.0)) == [pytest.approx(0.08)] * 2

    def test_a_step_ends_in_time_for_the_prompt_that_it_completes(self) -> None:
        """The first step is cut at 50 ms, with 20 tokens of the second prompt; the others follow in three steps."""
        first, second = ends_s([prefiller(), decoder()], (20, 0.05), (200, 1.0))
        assert first == pytest.approx(0.05)
        assert second == pytest.approx(0.05 + 2 * 0.099 + 0.012)

    def test_a_prompt_that_would_end_late_does_not_fit(self) -> None:
        assert decide([prefiller(), decoder()], ask(prompt_tokens=50, deadline_s=0.06)).guaranteed
        assert not decide([prefiller(), decoder()], ask(prompt_tokens=50, deadline_s=0.0599)).guaranteed

    def test_a_request_that_stays_takes_its_token_from_every_later_step(self) -> None:
        """The first stays with a TPOT of 50 ms: steps are 50 ms from then on, with 38 tokens of the second prompt."""
        asked = [ask("a", 50, tier=0, deadline_s=0.07), ask("b", 100, deadline_s=2.0, tier=-1)]
        first, second = [decision.expected_first_token_s for decision in plan([colocated()], *asked).decisions]
        assert first == pytest.approx(0.07)
        # The first step has 10 tokens of the second prompt. Then steps change: a decode may need its token at once.
        assert second is not None
        assert second == pytest.approx(0.07 + 2 * 0.049 + 0.01 + 0.001 + 0.014, abs=0.0021)

    def test_decodes_share_every_step(self) -> None:
        busy = colocated(running=(0, 20), context_tokens=(0, 2000))
        (end_s,) = ends_s([busy], (200, 3.0))
        # Steps of 99 ms have 69 tokens of the prompt; each stream may need one token more than its share at once.
        assert end_s == pytest.approx(2 * 0.099 + 0.01 + 0.02 + 0.062 + 0.001, abs=0.002)

    def test_as_long_as_weights_are_read_no_step_ends(self) -> None:
        profile = WorkerProfile(StepBound(0.01, 1e-3, memory_s=0.03), TIERS, 512, 0.1)
        workers = [prefiller(profile=profile), decoder(profile=profile, handover_steps=0.0)]
        for tokens, due_s in ((5, 0.04), (50, 0.06)):
            assert decide(workers, ask("c", tokens, deadline_s=due_s)).guaranteed
            assert not decide(workers, ask("c", tokens, deadline_s=due_s - 1e-4)).guaranteed
        # A last token of 90 takes a step of 40 ms; if steps begin elsewhere, two tokens may take one each.
        assert decide(workers, ask("c", 90, deadline_s=0.169)).guaranteed
        assert not decide(workers, ask("c", 90, deadline_s=0.1689)).guaranteed
        assert ends_s(workers, (5, 1.0)) == [pytest.approx(0.07)]

    def test_a_step_holds_no_more_tokens_than_a_batch(self) -> None:
        profile = WorkerProfile(StepBound(0.01, 1e-3), TIERS, max_step_tokens=41, max_step_s=0.1)
        workers = [prefiller(profile=profile), decoder(profile=profile, handover_steps=0.0)]
        assert ends_s(workers, (100, 1.0)) == [pytest.approx(2 * 0.05 + 0.03)]


BUSY = st.tuples(st.integers(0, 60), st.integers(0, 60))
JOBS = st.lists(
    st.tuples(st.integers(1, 1500), st.floats(0.0, 2.0), st.integers(-1, 1), st.integers(0, 1200)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(
    running=BUSY,
    context=st.integers(0, 1000),
    busy_s=st.floats(0, 0.1),
    jobs=JOBS,
    bound=st.sampled_from([ADDITIVE, ROOFLINE]),
    acceptance=st.sampled_from([(), (0.8, 0.5)]),
    most=st.sampled_from([64, 512, 8192]),
)
def test_a_schedule_is_that_of_the_model_in_plain_python(
    running: tuple[int, int],
    context: int,
    busy_s: float,
    jobs: list[tuple[int, float, int, int]],
    bound: StepBound,
    acceptance: tuple[float, ...],
    most: int,
) -> None:
    profile = WorkerProfile(bound, Tiers((0.05, 0.1), acceptance, 3 if acceptance else 0), most)
    contexts = (running[0] * context, running[1] * context)
    worker = Worker("w", profile, True, True, 10**6, 10**6, running, contexts, busy_s=busy_s)
    schedule, chosen_step = np.zeros(SCHEDULE_LOAD + 4), np.zeros(SCHEDULE_LOAD + 4)
    table, tpot_s = profile.step_table, profile.tiers.tpots
    expected = Schedule.of(worker)
    assert begin(worker.row, table, tpot_s, schedule) == (expected is not None)
    if expected is None:
        return
    assert schedule[SCHEDULE_START_S] == pytest.approx(expected.start_s)
    rows = np.zeros((len(jobs), JOB_COLUMNS))
    for job, (tokens, slack_s, tier, kv_tokens) in enumerate(jobs):
        work_s = tokens * bound.per_token_s
        limit_s = expected.end_s + work_s * (1 + slack_s)
        rows[job, JOB_WORK_S], rows[job, JOB_LIMIT_S] = work_s, limit_s
        rows[job, JOB_LOCAL_TIER], rows[job, JOB_KV_TOKENS] = tier, kv_tokens
        outcome = advance(worker.row, table, tpot_s, rows, job, schedule)
        after = expected.with_prefill(work_s, limit_s, tier, kv_tokens)
        if acceptance:
            # With drafts, a decode that joins is looked for among neighbouring step lengths only.
            assume((outcome == FITS) == (after is not None))
        assert (outcome == FITS) == (after is not None)
        if after is None:
            assert outcome in {LACKS_DECODE_RATE, LACKS_PREFILL_TIME}
            return
        if acceptance:
            assume(schedule[SCHEDULE_START_S] == pytest.approx(after.start_s))
        expected = after
        assert schedule[SCHEDULE_START_S] == pytest.approx(expected.start_s)
        assert schedule[SCHEDULE_USED_S] == pytest.approx(expected.used_s, abs=1e-12)
        assert end_of(schedule) == pytest.approx(expected.end_s)
        assert keeps_up(worker.row, table, 2, schedule, chosen_step) == expected.keeps_up


def test_a_prefill_goes_behind_those_due_at_the_same_time() -> None:
    jobs = np.zeros((4, JOB_COLUMNS))
    jobs[:, JOB_DUE_S] = [1.0, 2.0, 2.0, math.inf]
    queue = np.arange(4)
    places = [queue_position(jobs, queue, 4, due_s) for due_s in (0.5, 1.0, 1.5, 2.0, math.inf)]
    assert places == [0, 1, 1, 3, 4]


def test_a_promise_that_cannot_be_kept_binds_nobody_but_keeps_its_place() -> None:
    late = prefiller(promised=(PromisedPrefill(0.05, 100), PromisedPrefill(0.3, 50)))
    outcome = plan([late, decoder()], ask("c", 50, deadline_s=1.0))
    # All 200 tokens follow each other: the lost one first.
    assert outcome.decisions[0].expected_first_token_s == pytest.approx(2 * 0.099 + 0.032)
    for due_s, fits in ((0.17, True), (0.169, False)):
        assert decide([late, decoder()], ask("c", 50, deadline_s=due_s)).guaranteed == fits
    early = prefiller(promised=(PromisedPrefill(0.05, 100), PromisedPrefill(0.17, 50)))
    assert not decide([early, decoder()], ask("c", 50, deadline_s=0.16)).guaranteed, "the second can be kept, and is"
