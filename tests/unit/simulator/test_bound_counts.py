"""Counts of what can be done in time, against a linear program that knows every interval."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.bound_counts import SLOTS, TOGETHER, Jobs, most_in_bursts, most_on_grid
from tests.support.count_program import most_by_program

times = st.integers(0, SLOTS - 1)
jobs = st.lists(st.tuples(times, st.integers(1, SLOTS), st.floats(0.1, SLOTS)), min_size=1, max_size=12)


def jobs_of(rows: list[tuple[int, int, float]]) -> Jobs:
    """Times are multiples of a slot, when the last of them is due at the end of the grid."""
    rows = sorted(rows)
    releases = [0, *(release for release, _, _ in rows)]
    dues = [SLOTS, *(min(SLOTS, release + span) for release, span, _ in rows)]
    works = [SLOTS / 2, *(work for _, _, work in rows)]
    return Jobs(np.array(releases, float), np.array(dues, float), np.array(works, float))


@given(jobs)
def test_both_counts_are_the_best_fractional_choice(
    oracle: ProcessPoolExecutor, rows: list[tuple[int, int, float]]
) -> None:
    given = jobs_of(rows)
    most = oracle.submit(most_by_program, given).result()
    assert most_on_grid(given) == pytest.approx(most, abs=1e-6)
    # What is tried of a job that does not fit whole is rounded up.
    assert most - 1e-6 <= most_in_bursts(given) <= most + 0.01 * len(rows)


@given(jobs, st.integers(0, 10))
def test_between_the_times_of_the_grid_more_is_allowed_never_less(
    oracle: ProcessPoolExecutor, rows: list[tuple[int, int, float]], tenths: int
) -> None:
    given = jobs_of(rows)
    shifted = Jobs(given.release_s + tenths / 10, given.due_s, given.work_s)
    shifted.release_s[0] = 0.0
    assert most_on_grid(shifted) >= oracle.submit(most_by_program, shifted).result() - 1e-6


def test_bounding_in_parts_only_loosens_the_bound() -> None:
    count = TOGETHER + 200
    release_s = np.arange(count) / 40
    given = Jobs(release_s, release_s + 1.0, np.linspace(0.01, 0.06, count))
    first, second = given.part(0), given.part(TOGETHER)
    assert most_in_bursts(first) < TOGETHER
    assert most_in_bursts(given) == pytest.approx(most_in_bursts(first) + most_in_bursts(second))


def test_work_without_a_due_time_is_always_done() -> None:
    never = Jobs(np.zeros(3), np.array([np.inf, np.inf, 1.0]), np.array([5.0, 7.0, 4.0]))
    assert most_on_grid(never) == pytest.approx(2.25)
    assert most_on_grid(Jobs(np.zeros(2), np.full(2, np.inf), np.ones(2))) == 2


def test_all_together_only_the_last_find_a_machine_that_nobody_wants() -> None:
    """Twice as much as the machine can do: in parts half of what is due later than the part lasts seems possible."""
    count = 5 * TOGETHER
    release_s = np.arange(count, dtype=float)
    given = Jobs(release_s, release_s + TOGETHER, np.full(count, 2.0))
    assert most_in_bursts(given) == pytest.approx(count, rel=0.01)
    assert most_on_grid(given) == pytest.approx((count + TOGETHER) / 2, rel=0.01)
