"""A worker is silent if it says nothing, not if nobody listened."""

from __future__ import annotations

from router.cluster.silence import SilenceWatch

START_S = 5000.0


def watch() -> SilenceWatch[str]:
    silence: SilenceWatch[str] = SilenceWatch(10.0, START_S)
    silence.heard("d1", START_S)
    return silence


def test_a_worker_that_says_nothing_is_silent_after_the_time_it_has() -> None:
    silence = watch()
    assert [silence.check(START_S + second) for second in range(1, 10)] == [[]] * 9
    assert silence.check(START_S + 10.0) == ["d1"]


def test_a_word_begins_the_time_anew() -> None:
    silence = watch()
    for second in range(1, 10):
        silence.check(START_S + second)
    silence.heard("d1", START_S + 9.5)
    assert [silence.check(START_S + second) for second in range(10, 19)] == [[]] * 9
    assert silence.check(START_S + 19.5) == ["d1"]


def test_the_time_in_which_this_process_was_held_up_does_not_count() -> None:
    silence = watch()
    silence.check(START_S + 1.0)
    # Paused for 40 s: what workers said meanwhile has yet to be read.
    assert silence.check(START_S + 42.0) == []
    assert [silence.check(START_S + 42.0 + second) for second in range(1, 8)] == [[]] * 7
    assert silence.check(START_S + 50.0) == ["d1"]


def test_checks_that_are_a_little_late_give_no_more_time() -> None:
    silence = watch()
    now_s = START_S
    for _ in range(5):
        now_s += 1.9
        assert silence.check(now_s) == []
    assert silence.check(now_s + 1.0) == ["d1"]


def test_a_worker_that_was_let_go_is_not_waited_for() -> None:
    silence = watch()
    silence.forget("d1")
    silence.forget("nobody")
    assert silence.check(START_S + 1.0) == []
    assert [silence.check(START_S + second) for second in range(2, 30)] == [[]] * 28
