"""The time that prefills have beside streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.composer.prefills import Headroom

seconds = st.floats(0.001, 0.2)


@pytest.mark.parametrize(
    ("left_s", "headroom_s"),
    [(0.02, 0.0), (0.01, -0.01), (0.05, 0.03), (0.06, 0.03), (0.09, 0.05), (0.1, 0.06), (0.18, 0.1)],
)
def test_room_comes_step_by_step(left_s: float, headroom_s: float) -> None:
    assert Headroom(0.05, 0.05, 0.02).until(left_s) == pytest.approx(headroom_s)


def test_the_first_step_may_be_shorter_and_spare_its_streams() -> None:
    room = Headroom(0.03, 0.05, 0.02, skipped_s=0.005)
    assert room.until(0.03) == pytest.approx(0.015)
    assert room.until(0.08) == pytest.approx(0.045)


def test_streams_that_take_the_whole_step_leave_nothing() -> None:
    assert Headroom(0.05, 0.05, 0.06).until(9.0) == 0.0


@given(first_step_s=seconds, step_s=seconds, streams_s=seconds, left_s=st.floats(0.0, 2.0), more_s=st.floats(0.0, 0.1))
def test_room_is_never_more_than_the_rate_gives_and_grows_with_time(
    first_step_s: float, step_s: float, streams_s: float, left_s: float, more_s: float
) -> None:
    room = Headroom(first_step_s, step_s, streams_s)
    assert room.until(left_s) <= left_s - streams_s + 1e-9
    assert room.until(left_s) <= room.until(left_s + more_s) + 1e-9
    longest_s = max(first_step_s, step_s)
    assert room.until(left_s) <= max(0.0, left_s * (1 - streams_s / longest_s)) + 1e-9
