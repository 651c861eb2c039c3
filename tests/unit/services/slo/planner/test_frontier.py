"""The search over one worker, part by part, on rows that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from services.slo.planner.kernels.frontier import _afford, _dominates, _prune
from services.slo.planner.kernels.layout import (
    FRONTIER_DECODER_KV_TOKENS,
    FRONTIER_DECODER_LOAD,
    FRONTIER_KV_TOKENS,
    FRONTIER_SPENT_S,
    FRONTIER_VALUE,
    JOB_KV_TOKENS,
    JOB_LOCAL_TIER,
    JOB_PROMPT_TOKENS,
    JOB_TIER,
    SCHEDULE_BASE_S,
    SCHEDULE_CAPACITY_S,
    SCHEDULE_LOAD,
    SCHEDULE_START_S,
    SCHEDULE_TIGHTEST_S,
    SCHEDULE_USED_S,
    SETTING_PROMISED_JOBS,
)
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.packing import pack
from tests.unit.services.slo.planner.simple import ask, decoder, prefiller, problem_of

TIERS = 2
EXTRA_AT = SCHEDULE_LOAD + 2 * TIERS
WIDTH = EXTRA_AT + FRONTIER_DECODER_LOAD + 2 * TIERS


def test_the_schedules_kept_are_those_of_the_highest_value_less_the_time_they_used() -> None:
    rows = np.zeros((6, WIDTH))
    rows[:, SCHEDULE_START_S] = np.arange(6)
    rows[:, EXTRA_AT + FRONTIER_VALUE] = [1.0, 9.0, 2.0, 8.0, 7.5, 3.0]
    rows[4, EXTRA_AT + FRONTIER_SPENT_S] = 2.0
    assert _prune(rows, 6, 3, 2.0, EXTRA_AT) == 3
    assert rows[:3, SCHEDULE_START_S].tolist() == [1.0, 3.0, 4.0]


def test_a_schedule_is_as_good_as_its_equal_and_better_than_one_with_less_room() -> None:
    row = np.zeros(WIDTH)
    row[[SCHEDULE_USED_S, SCHEDULE_TIGHTEST_S, SCHEDULE_BASE_S, SCHEDULE_CAPACITY_S]] = 0.02, 0.1, 0.01, 0.08
    assert _dominates(row, row.copy(), EXTRA_AT, TIERS)
    fuller = row.copy()
    fuller[SCHEDULE_USED_S] = 0.05
    assert _dominates(row, fuller, EXTRA_AT, TIERS)
    assert not _dominates(fuller, row, EXTRA_AT, TIERS)


@pytest.mark.parametrize(("tracks_decoder", "at_the_decoder_tokens"), [(True, 150.0), (False, 0.0)])
def test_a_request_without_a_rate_takes_memory_where_it_decodes(
    tracks_decoder: bool, at_the_decoder_tokens: float
) -> None:
    """On a worker that is the only one to decode it holds its context there, and its prompt where that is computed."""
    state: PlanState = pack(problem_of([prefiller(), decoder()], ask(prompt_tokens=50, tier=-1)), 1e9).state
    job = int(state.settings[SETTING_PROMISED_JOBS])
    assert (state.jobs[job, JOB_TIER], state.jobs[job, JOB_LOCAL_TIER]) == (-1, -1)
    assert (state.jobs[job, JOB_PROMPT_TOKENS], state.jobs[job, JOB_KV_TOKENS]) == (50, 150)
    row, scratch = np.zeros(WIDTH), np.zeros(WIDTH)
    tables = state.step_tables
    fits = _afford(
        state.workers[0], state.workers[1], tables[1], tracks_decoder, TIERS, state.jobs, job, row, EXTRA_AT, scratch
    )
    assert fits
    assert row[EXTRA_AT + FRONTIER_KV_TOKENS] == (50 if tracks_decoder else 150)
    assert row[EXTRA_AT + FRONTIER_DECODER_KV_TOKENS] == at_the_decoder_tokens
