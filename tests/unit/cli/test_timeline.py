"""The timeline of a request in text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli.explain.timeline import BAR, BEYOND, CAME, DUE, Moment, Stay, duration, timeline

PHASES = ("queue", "prefill", "decode")


def test_phases_share_one_axis_with_what_was_due() -> None:
    stays = [Stay("queue", 0.0, 0.25), Stay("prefill", 0.25, 0.75), Stay("decode", 0.75, 1.0)]
    moments = [Moment("came", 0.75, due=False), Moment("due", 0.5, due=True)]
    # 7 columns of names, 10 of figures, 4 between: 40 are left.
    assert timeline(stays, moments, 61) == [
        "queue    ██████████          ┊                         250 ms",
        "prefill            ████████████████████                500 ms",
        "decode                       ┊         ██████████      250 ms",
        "due                          ┊                         500 ms",
        "came                         ┊         ▼               750 ms",
    ]


def test_a_phase_that_is_entered_again_has_one_line_with_all_its_time() -> None:
    stays = [Stay("queue", 0.0, 0.5), Stay("restart", 0.5, 1.0), Stay("queue", 1.0, 2.0)]
    queue, restart = timeline(stays, [], 60)
    assert queue.endswith("1.50 s")
    assert restart.endswith("500 ms")
    assert [len(part) for part in queue.split()[1:3]] == [10, 20]


def test_nothing_has_no_timeline() -> None:
    assert timeline([], [], 80) == []
    assert timeline([Stay("plan", 0.0, 0.0)], [], 80) == []


@given(
    st.lists(st.tuples(st.sampled_from(PHASES), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=8),
    st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=4),
    st.integers(0, 200),
)
@example([("queue", 0.0, 2.2250738585e-313)], [(1.0, True)], 0)
def test_lines_fit_and_every_phase_is_seen(
    spans: list[tuple[str, float, float]], marks: list[tuple[float, bool]], columns: int
) -> None:
    stays = [Stay(phase, min(one, other), max(one, other)) for phase, one, other in spans]
    moments = [Moment(f"m{index}", at_s, due) for index, (at_s, due) in enumerate(marks)]
    lines = timeline(stays, moments, columns)
    if not lines:
        return
    assert len(lines) == len({stay.phase for stay in stays}) + len(moments)
    widths = {len(line) for line in lines}
    assert len(widths) == 1
    assert widths <= set(range(max(columns, 50) + 1))
    for phase in {stay.phase for stay in stays}:
        assert BAR in next(line for line in lines if line.startswith(phase))
    for moment in moments:
        line = next(line for line in lines if line.startswith(moment.name))
        assert (DUE in line or BEYOND in line) if moment.due else CAME in line


def test_what_is_due_much_later_is_pointed_to_and_shrinks_nothing() -> None:
    queue, due = timeline([Stay("queue", 0.0, 1.0)], [Moment("due", 1.6, due=True)], 57)
    assert queue == f"queue  {BAR * 38}      1.00 s"
    assert due.rstrip().endswith(f"{BEYOND}      1.60 s")
    queue, due = timeline([Stay("queue", 0.0, 1.0)], [Moment("due", 1.5, due=True)], 57)
    assert queue.count(BAR) == 25
    assert BEYOND not in due


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 ms"), (0.0004, "0.4 ms"), (0.0125, "12 ms"), (0.9, "900 ms"), (61.5, "61.50 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
