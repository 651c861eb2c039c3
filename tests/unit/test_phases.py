"""Every moment of a request belongs to exactly one phase."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.phases import Phase, PhaseClock

moves = st.lists(
    st.tuples(st.sampled_from(Phase), st.floats(min_value=0, max_value=5), st.floats(min_value=-1, max_value=9)),
    max_size=20,
)


@given(moves=moves)
def test_the_phases_add_up_to_the_time_of_the_request(moves: list[tuple[Phase, float, float]]) -> None:
    clock = PhaseClock(since_s=100.0)
    now_s = 100.0
    for phase, passed_s, reported_s in moves:
        now_s += passed_s
        clock.entered(phase, 100.0 + reported_s, now_s)
    spent_s = clock.spent_s(now_s)
    assert sum(spent_s.values()) == pytest.approx(now_s - 100.0)
    assert all(value >= -1e-9 for value in spent_s.values())


def test_a_phase_may_turn_out_to_have_begun_earlier() -> None:
    clock = PhaseClock(since_s=0.0)
    clock.enter(Phase.PREFILL_WAIT, 1.0)
    clock.entered(Phase.PREFILL, at_s=1.5, now_s=4.0)
    spent_s = clock.spent_s(now_s=4.0)
    assert (spent_s[Phase.PLAN], spent_s[Phase.PREFILL_WAIT], spent_s[Phase.PREFILL]) == (1.0, 0.5, 2.5)
