"""Every moment of a request belongs to exactly one phase."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.requests.phases import KEPT_CHANGES, Phase, PhaseClock, broken_by
from services.slo.attainment import Attainment, AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, PrefillTarget

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


def test_changes_are_remembered_in_order_and_bounded() -> None:
    clock = PhaseClock(since_s=0.0)
    clock.enter(Phase.QUEUE, 1.0)
    clock.enter(Phase.PREFILL, 2.0)
    assert clock.changes == [(Phase.PLAN, 1.0), (Phase.QUEUE, 2.0)]
    for index in range(1000):
        clock.enter(Phase.RESTART, 3.0 + index)
    assert len(clock.changes) == KEPT_CHANGES


def attained(ttft_s: float, gaps_s: tuple[float, ...] = (), due_s: float | None = None) -> Attainment:
    """Of a request that asked for 0.5 s and 0.1 s a token."""
    meter = AttainmentMeter(Contract(PrefillTarget(ttft_s=0.5), (DecodeTarget(0.1),)), 0.0, due_s)
    now_s = ttft_s
    meter.note_tokens(1, now_s)
    for gap_s in gaps_s:
        now_s += gap_s
        meter.note_tokens(1, now_s)
    meter.end(now_s)
    return meter.attainment()


def spent(**seconds: float) -> dict[Phase, float]:
    return {phase: seconds.get(phase.value, 0.0) for phase in Phase}


def test_a_kept_promise_was_broken_by_nothing() -> None:
    assert broken_by(attained(0.4, (0.05, 0.05)), spent(queue=0.4), 0.1) is None


@pytest.mark.parametrize(
    ("phases", "idle_prefill_s", "guilty"),
    [
        (spent(queue=0.4, prefill=0.3), 0.05, Phase.QUEUE),
        (spent(queue=0.1, prefill_wait=0.3, prefill=0.5), 0.3, Phase.PREFILL_WAIT),
        (spent(queue=0.1, prefill_wait=0.2, prefill=0.5), 0.1, Phase.PREFILL),
        (spent(queue=0.1, restart=0.4, decode=9.0), 0.1, Phase.RESTART),
    ],
)
def test_a_late_first_token_is_laid_to_what_took_longest_over_an_idle_worker(
    phases: dict[Phase, float], idle_prefill_s: float, guilty: Phase
) -> None:
    assert broken_by(attained(0.8), phases, idle_prefill_s) is guilty


def test_late_tokens_are_laid_to_restart_hand_over_or_decoding() -> None:
    late = attained(0.4, (0.3, 0.01))
    assert broken_by(late, spent(handover=0.25, decode=0.05), 0.1) is Phase.HANDOVER
    assert broken_by(late, spent(handover=0.05, decode=0.25), 0.1) is Phase.DECODE
    assert broken_by(late, spent(handover=0.25, restart=0.1), 0.1) is Phase.RESTART


def test_a_late_task_is_laid_to_its_longest_phase() -> None:
    assert broken_by(attained(0.4, (0.05,), due_s=0.42), spent(prefill=0.4, decode=0.05), 0.1) is Phase.PREFILL


def test_a_hand_over_is_not_to_blame_for_a_later_stage() -> None:
    meter = AttainmentMeter(Contract(decode=(DecodeTarget(1.0, ends_with="x"), DecodeTarget(0.1))), 70.0)
    meter.note_tokens(1, 70.4)
    meter.end_stage()
    meter.note_tokens(1, 70.9)
    assert broken_by(meter.attainment(), spent(handover=0.25, decode=0.25), 0.1) is Phase.DECODE


def test_a_task_that_ended_without_a_token_was_lost_before_its_first() -> None:
    meter = AttainmentMeter(Contract(decode=(DecodeTarget(0.1),)), 70.0, task_due_s=71.0)
    meter.end(72.0)
    assert broken_by(meter.attainment(), spent(queue=0.5, prefill=1.4), idle_prefill_s=1.0) is Phase.QUEUE
