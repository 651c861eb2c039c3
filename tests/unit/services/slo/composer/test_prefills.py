"""Prefills in order of service, and the time that they have beside streams."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.composer import SchedulableRequest, StepMeter
from services.slo.composer.prefills import (
    SPARE_FRACTION,
    Headroom,
    Prefill,
    best_effort_decode_s,
    by_deadline,
    late_ones_first,
    most_in_time,
    rescued_by_skipping_s,
    short_of_time,
    with_attainable,
)
from tests.unit.services.slo.composer.works import MODEL, prefill, stream, waiting

seconds = st.floats(0.001, 0.2)
NOW_S = 50.0
WIDE = Headroom(0.1, 0.1, 0.0)
"""All of the time."""


def prompt(
    name: str, compute_s: float, due_in_s: float = math.inf, *, late: bool = False, best_effort: bool = False
) -> Prefill:
    work = waiting(name, 9, best_effort=best_effort)
    return Prefill(late, NOW_S + due_in_s, 0.0, name, compute_s, work)


def names(prefills: list[Prefill]) -> list[str]:
    return [each.request_id for each in prefills]


@pytest.mark.parametrize(
    ("left_s", "headroom_s"),
    [(0.02, 0.0), (0.01, -0.01), (0.05, 0.03), (0.06, 0.03), (0.09, 0.05), (0.1, 0.06), (0.18, 0.1)],
)
def test_headroom_comes_step_by_step(left_s: float, headroom_s: float) -> None:
    assert Headroom(0.05, 0.05, 0.02).until(left_s) == pytest.approx(headroom_s)


def test_the_first_step_may_be_shorter_and_spare_its_streams() -> None:
    headroom = Headroom(0.03, 0.05, 0.02, skipped_s=0.005)
    assert headroom.until(0.03) == pytest.approx(0.015)
    assert headroom.until(0.025) == pytest.approx(0.010)
    assert headroom.until(0.08) == pytest.approx(0.045)


def test_streams_that_take_the_whole_step_leave_nothing() -> None:
    assert Headroom(0.05, 0.05, 0.06).until(9.0) == 0.0


@given(first_s=seconds, step_s=seconds, beside_s=seconds, left_s=st.floats(0.0, 2.0), more_s=st.floats(0.0, 0.1))
def test_headroom_is_never_more_than_the_rate_gives_and_grows_with_time(
    first_s: float, step_s: float, beside_s: float, left_s: float, more_s: float
) -> None:
    headroom = Headroom(first_s, step_s, beside_s)
    assert headroom.until(left_s) <= left_s - beside_s + 1e-9
    assert headroom.until(left_s) <= headroom.until(left_s + more_s) + 1e-9
    longest_s = max(first_s, step_s)
    assert headroom.until(left_s) <= max(0.0, left_s * (1 - beside_s / longest_s)) + 1e-9


def test_prefills_go_by_deadline_and_those_that_cannot_be_in_time_last() -> None:
    """A token takes 1 ms, and a step 9.9 ms besides; a step has at most 64 tokens."""
    works = [
        waiting("late", 30, NOW_S + 0.035),
        waiting("loose", 20, NOW_S + 9.0),
        prefill("half done", 10, NOW_S + 0.02, computed=40),
        waiting("two steps", 100, NOW_S + 0.119),
        waiting("endless", 5, math.inf),
    ]
    found = by_deadline(works, StepMeter(MODEL), 64, NOW_S, 1.0)
    assert names(found) == ["half done", "loose", "endless", "late", "two steps"]
    assert [each.late for each in found] == [False, False, False, True, True]
    assert [each.compute_s for each in found] == pytest.approx([0.010, 0.020, 0.005, 0.030, 0.100])
    assert [each.late for each in by_deadline(works, StepMeter(MODEL), 64, NOW_S, 0.8)] == [False] * 5


def test_of_prefills_due_together_the_one_that_waits_longest_goes_first() -> None:
    works = [waiting("b", 5, NOW_S + 1, waiting_since_s=3.0), waiting("c", 5, NOW_S + 1, waiting_since_s=1.0)]
    works.append(waiting("a", 5, NOW_S + 1, waiting_since_s=3.0))
    assert names(by_deadline(works, StepMeter(MODEL), 64, NOW_S, 1.0)) == ["c", "a", "b"]


def test_a_pull_takes_no_time_of_the_engine() -> None:
    (found,) = by_deadline([waiting("pulls", 5000, NOW_S + 0.001, pulls_kv=True)], StepMeter(MODEL), 64, NOW_S, 1.0)
    assert (found.compute_s, found.late) == (0.0, False)


def test_late_ones_go_first_as_far_as_the_others_have_time_to_spare() -> None:
    """40 ms are due in 100: 60 are to spare, of which 10 are kept."""
    in_time = [prompt("a", 0.02, 0.1), prompt("b", 0.02, 0.1)]
    late = [prompt("x", 0.03, -1.0, late=True), prompt("y", 0.02, -1.0, late=True), prompt("z", 0.001, 0.0, late=True)]
    assert names(late_ones_first([*in_time, *late], WIDE, NOW_S)) == ["x", "y", "a", "b", "z"]
    assert pytest.approx(0.01) == SPARE_FRACTION * 0.04
    tight = [prompt("a", 0.09, 0.1)]
    assert names(late_ones_first([*tight, *late], WIDE, NOW_S)) == ["a", "x", "y", "z"]
    assert names(late_ones_first([*in_time], WIDE, NOW_S)) == ["a", "b"]
    assert names(late_ones_first([*late], WIDE, NOW_S)) == ["x", "y", "z"]


def test_the_first_with_little_time_decides_whether_late_ones_go_first() -> None:
    prefills = [prompt("tight", 0.02, 0.03), prompt("loose", 0.02, 9.0), prompt("x", 0.01, -1.0, late=True)]
    assert names(late_ones_first(prefills, WIDE, NOW_S)) == ["tight", "loose", "x"]


def test_prefills_are_short_of_time_together() -> None:
    pair = [prompt("a", 0.03, 0.05), prompt("b", 0.03, 0.07)]
    assert not short_of_time(pair, WIDE, NOW_S)
    assert short_of_time(pair, WIDE, NOW_S, 0.75)
    assert short_of_time([*pair, prompt("c", 0.02, 0.079)], WIDE, NOW_S)
    assert not short_of_time([*pair, prompt("c", 9.0)], WIDE, NOW_S), "it is never due"
    late = [prompt("x", 9.0, -1.0, late=True)]
    assert not short_of_time([*pair, *late], WIDE, NOW_S), "it is late anyway"
    assert not short_of_time([*late, *pair], WIDE, NOW_S)
    assert not short_of_time([], WIDE, NOW_S)


def test_the_longest_is_given_up_so_that_most_are_in_time() -> None:
    prefills = [prompt("long", 0.05, 0.06), prompt("b", 0.03, 0.07), prompt("c", 0.03, 0.08), prompt("d", 0.5)]
    found = most_in_time(prefills, WIDE, NOW_S, 1.0)
    assert names(found) == ["b", "c", "d", "long"]
    assert [each.late for each in found] == [False, False, False, True]
    fine = [prompt("a", 0.05, 0.06), prompt("b", 0.03, 0.09)]
    assert most_in_time(fine, WIDE, NOW_S, 1.0) is fine


def test_what_may_be_in_time_in_the_best_case_is_not_given_up() -> None:
    prefills = [prompt("a", 0.05, 0.06), prompt("b", 0.03, 0.07)]
    assert names(most_in_time(prefills, WIDE, NOW_S, 1.0)) == ["b", "a"]
    assert names(most_in_time(prefills, WIDE, NOW_S, 0.8)) == ["a", "b"], "80 ms of 87.5"


def test_all_are_given_up_where_none_has_any_time() -> None:
    prefills = [prompt("a", 0.05, 0.01), prompt("b", 0.03, 0.02)]
    assert all(each.late for each in most_in_time(prefills, Headroom(0.1, 0.1, 0.2), NOW_S, 1.0))


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60)), max_size=7))
def test_no_choice_has_more_in_time(jobs: list[tuple[int, int]]) -> None:
    """Against every subset; the time of a job is counted without steps."""
    whole = Headroom(1e9, 1e9, 0.0)
    prefills = sorted(prompt(f"p{index}", float(work), float(due)) for index, (work, due) in enumerate(jobs))
    kept = [each for each in most_in_time(prefills, whole, NOW_S, 1.0) if not each.late]

    def feasible(chosen: list[Prefill]) -> bool:
        done = 0.0
        for each in sorted(chosen):
            done += each.compute_s
            if done > each.due_s - NOW_S:
                return False
        return True

    assert feasible(kept)
    best = max(
        (
            mask.bit_count()
            for mask in range(1 << len(prefills))
            if feasible([p for i, p in enumerate(prefills) if mask >> i & 1])
        ),
        default=0,
    )
    assert len(kept) == best


def test_best_effort_goes_among_promises_that_have_time_to_spare() -> None:
    promised = [prompt("a", 0.02, 0.05), prompt("b", 0.02, 0.17)]
    be = prompt("be", 0.05, 0.1, best_effort=True)
    assert names(with_attainable(promised, [be], WIDE, WIDE, NOW_S)) == ["a", "be", "b"]
    long = prompt("be", 0.09, 0.12, best_effort=True)
    assert with_attainable(promised, [long], WIDE, WIDE, NOW_S) is promised, "130 ms for b, of which 127.5 are left"
    assert names(with_attainable([promised[0]], [long], WIDE, WIDE, NOW_S)) == ["a", "be"]


def test_promises_keep_a_quarter_of_their_headroom_and_best_effort_none() -> None:
    be = prompt("be", 0.04, 0.05, best_effort=True)
    assert names(with_attainable([prompt("p", 0.03, 0.1)], [be], WIDE, WIDE, NOW_S)) == ["be", "p"]
    assert names(with_attainable([prompt("p", 0.036, 0.1)], [be], WIDE, WIDE, NOW_S)) == ["p"]
    half = Headroom(0.1, 0.1, 0.05)
    assert names(with_attainable([], [be], WIDE, half, NOW_S)) == [], "what it may extend is not enough for it"
    assert names(with_attainable([], [be], half, WIDE, NOW_S)) == ["be"], "it needs no headroom of promises"


def test_promises_due_before_best_effort_are_not_its_concern() -> None:
    """The first has no quarter to spare, and loses nothing."""
    promised = [prompt("tight", 0.045, 0.05), prompt("loose", 0.02, 9.0)]
    be = prompt("be", 0.05, 0.1, best_effort=True)
    assert names(with_attainable(promised, [be], WIDE, WIDE, NOW_S)) == ["tight", "be", "loose"]


def test_best_effort_that_does_not_fit_leaves_the_next_its_turn() -> None:
    promised = [prompt("p", 0.03, 0.1)]
    tried = [
        prompt("too long", 0.2, 0.05, best_effort=True),
        prompt("fits", 0.03, 0.05, best_effort=True),
        prompt("then not", 0.03, 0.08, best_effort=True),
    ]
    assert names(with_attainable(promised, tried, WIDE, WIDE, NOW_S)) == ["fits", "p"]


def test_late_promises_come_after_best_effort_that_is_in_time() -> None:
    promised = [prompt("p", 0.03, 9.0), prompt("x", 5.0, -1.0, late=True)]
    be = prompt("be", 0.03, 0.05, best_effort=True)
    assert names(with_attainable(promised, [be], WIDE, WIDE, NOW_S)) == ["be", "p", "x"]


def test_skipping_rescues_what_is_late_beside_streams_and_in_time_without() -> None:
    """Streams take 10 ms of the first 50, and leave 8 if they skip it."""
    headroom = Headroom(0.05, 0.05, 0.01, skipped_s=0.008)
    assert rescued_by_skipping_s([prompt("p", 0.045, 0.05)], headroom, NOW_S) == pytest.approx(0.045)
    assert rescued_by_skipping_s([prompt("p", 0.039, 0.05)], headroom, NOW_S) == 0.0, "it is in time beside them"
    assert rescued_by_skipping_s([prompt("p", 0.049, 0.05)], headroom, NOW_S) == 0.0, "it is late even so"
    several = [prompt("a", 0.02, 0.05), prompt("b", 0.025, 0.05), prompt("c", 0.01, 9.0)]
    assert rescued_by_skipping_s(several, headroom, NOW_S) == pytest.approx(0.045), "up to the last in need"
    assert rescued_by_skipping_s([prompt("x", 0.045, 0.05, late=True)], headroom, NOW_S) == 0.0


def test_the_oldest_streams_of_best_effort_get_half_of_what_promised_streams_leave() -> None:
    """Each costs 1 ms; the limit leaves 8 ms besides the 10.9 of a promised stream."""
    meter = StepMeter(MODEL)
    meter.add_decodes(1, 10)
    context = [
        stream(name, tokens, waiting_since_s=since_s) for name, tokens, since_s in (("b", 7, 2.0), ("a", 9, 1.0))
    ]
    limit_s = 0.0109 + 0.008
    assert best_effort_decode_s([], context, meter, limit_s, limit_s, NOW_S) == pytest.approx(0.002)
    many: list[SchedulableRequest] = [stream(f"s{index}") for index in range(9)]
    assert best_effort_decode_s([], many, meter, limit_s, limit_s, NOW_S) == pytest.approx(0.004)
    assert best_effort_decode_s([], many, meter, 0.0, limit_s, NOW_S) == 0.0
    need = [prompt("p", 0.0055, limit_s)]
    assert best_effort_decode_s(need, many, meter, limit_s, limit_s, NOW_S) == pytest.approx(0.002)


def test_the_oldest_stream_of_best_effort_is_counted_first() -> None:
    """Contexts cost as well: the oldest has a short one."""
    meter = StepMeter(MODEL.__class__(MODEL.coefficients.__class__(0.0099, 0.001, 1e-5, 0.0, "measured")))
    streams = [stream("young", 1000, waiting_since_s=9.0), stream("old", 100, waiting_since_s=1.0)]
    assert best_effort_decode_s([], streams, meter, 0.02, 0.02, NOW_S) == pytest.approx(0.002)
