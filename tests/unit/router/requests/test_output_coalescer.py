from __future__ import annotations

import asyncio

import pytest

from router.requests.output_coalescer import (
    GROWTH,
    IDLE_TICK_S,
    LATE_S,
    LEAST_S,
    MOST_S,
    TICK_S,
    OutputCoalescer,
    ReportDelay,
    next_interval_s,
)
from tests.support.virtual_time import run_virtual


def test_reports_that_are_read_in_time_pace_nothing() -> None:
    assert next_interval_s(0.0, LATE_S / 2) == 0.0


def test_the_pace_grows_while_reports_wait_and_no_further_than_its_limit() -> None:
    interval_s, paces = 0.0, []
    for _ in range(50):
        interval_s = next_interval_s(interval_s, 2 * LATE_S)
        paces.append(interval_s)
    assert paces[0] == LEAST_S
    assert paces == sorted(paces)
    assert interval_s == MOST_S


def test_the_pace_falls_to_nothing_once_they_are_read_in_time() -> None:
    interval_s = MOST_S
    for _ in range(400):
        interval_s = next_interval_s(interval_s, 0.0)
    assert interval_s == 0.0


def test_a_wait_is_told_from_clocks_that_have_no_common_zero() -> None:
    delay = ReportDelay()
    waits_s = [delay.waited_s(made_s, made_s - 5000.0 + wait_s) for made_s, wait_s in ((9.0, 0.002), (9.1, 0.001))]
    assert waits_s == pytest.approx([0.0, 0.0], abs=1e-4)
    assert delay.waited_s(9.2, -4990.8 + 0.301) == pytest.approx(0.3, abs=1e-3)
    assert delay.waited_s(9.3, -4990.7 + 0.001) == pytest.approx(0.0, abs=1e-3)


def test_clocks_that_drift_apart_are_no_wait() -> None:
    delay = ReportDelay()
    worst_s = max(delay.waited_s(second, second * (1 + 5e-5)) for second in map(float, range(0, 100_000, 10)))
    assert worst_s < 2e-3


@pytest.mark.parametrize("made_s", [float("nan"), float("inf"), float("-inf")])
def test_a_clock_that_says_no_time_is_not_listened_to(made_s: float) -> None:
    delay = ReportDelay()
    assert delay.waited_s(9.0, 5.0) == pytest.approx(0.0)
    assert delay.waited_s(made_s, 5.1) == 0.0
    assert delay.waited_s(9.2, 5.201) == pytest.approx(0.001, abs=1e-4)


def test_operators_are_told_while_tokens_are_joined() -> None:
    coalescer = OutputCoalescer()
    assert not coalescer.warning
    coalescer.interval_s = 0.1
    assert "100 ms" in coalescer.warning


def test_the_longest_wait_of_a_tick_counts_and_only_in_that_tick() -> None:
    coalescer = OutputCoalescer()
    coalescer.streams = 1
    coalescer.report_waited(2 * LATE_S)
    coalescer.report_waited(0.0)
    coalescer.tick()
    assert coalescer.interval_s == LEAST_S
    coalescer.tick()
    assert coalescer.interval_s == 0.0


def test_tokens_are_not_joined_for_streams_that_have_ended() -> None:
    coalescer = OutputCoalescer()
    coalescer.streams = 1
    for _ in range(10):
        coalescer.report_waited(2 * LATE_S)
        coalescer.tick()
    assert coalescer.interval_s > LEAST_S
    coalescer.streams = 0
    coalescer.tick()
    assert coalescer.interval_s == 0.0


def test_the_interval_is_adjusted_fifty_times_a_second_while_streams_are_open_and_seldom_without() -> None:
    async def story() -> list[float]:
        coalescer = OutputCoalescer()
        adjusting = asyncio.create_task(coalescer.run())
        coalescer.streams = 1
        await asyncio.sleep(IDLE_TICK_S + TICK_S / 2)  # No stream was open when it began to wait.
        intervals_s = []
        for _ in range(3):
            coalescer.report_waited(2 * LATE_S)
            await asyncio.sleep(TICK_S)
            intervals_s.append(coalescer.interval_s)
        coalescer.streams = 0
        await asyncio.sleep(TICK_S)
        coalescer.streams = 1
        coalescer.report_waited(2 * LATE_S)
        await asyncio.sleep(IDLE_TICK_S / 2)
        assert coalescer.interval_s == 0.0
        await asyncio.sleep(IDLE_TICK_S / 2)
        assert coalescer.interval_s == LEAST_S
        adjusting.cancel()
        return intervals_s

    assert run_virtual(story()) == pytest.approx([LEAST_S, LEAST_S * GROWTH, LEAST_S * GROWTH**2])
