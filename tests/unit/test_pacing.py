from router.pacing import BUSY_SHARE, LATE_S, LEAST_S, MOST_S, Pacer, next_pace_s


def test_a_loop_that_keeps_up_paces_nothing() -> None:
    assert next_pace_s(0.0, LATE_S / 2, BUSY_SHARE / 2) == 0.0


def test_the_pace_grows_while_the_loop_is_late_and_no_further_than_its_limit() -> None:
    pace_s, paces = 0.0, []
    for _ in range(50):
        pace_s = next_pace_s(pace_s, 2 * LATE_S, 0.5)
        paces.append(pace_s)
    assert paces[0] == LEAST_S
    assert paces == sorted(paces)
    assert pace_s == MOST_S


def test_the_pace_falls_to_nothing_once_the_loop_keeps_up() -> None:
    pace_s = MOST_S
    for _ in range(200):
        pace_s = next_pace_s(pace_s, 0.0, 0.5)
    assert pace_s == 0.0


def test_a_thread_that_is_busy_all_the_time_paces_even_if_its_timers_are_in_time() -> None:
    assert next_pace_s(0.0, 0.0, 0.9) == LEAST_S


def test_operators_are_told_while_tokens_are_joined() -> None:
    pacer = Pacer()
    assert not pacer.warning
    pacer.pace_s = 0.1
    assert "100 ms" in pacer.warning
