"""What engines say about their own scheduling, on its way to operators."""

from __future__ import annotations

import math

import pytest

from cli.status_details import scheduling as in_words
from router.cluster.engine_figures import EngineFigures
from services.engine.protocol import Scheduling
from slos_serve import Scheduling as ClientScheduling


def test_error_coverage_and_counts() -> None:
    figures = EngineFigures()
    figures.observe(Scheduling(0.04, 0.05, 1e-4), took_s=0.05)
    figures.observe(Scheduling(0.06, 0.07, 3e-4, preempted=2, held=9, drafted=8, accepted=3), took_s=0.08)
    message = figures.message()
    assert message is not None
    assert message.prediction_error == pytest.approx((0.2 + 0.25) / 2)
    assert message.bound_coverage == 0.5
    assert message.compose_s == pytest.approx(2e-4)
    assert (message.preempted, message.held, message.drafted, message.accepted) == (2, 9, 8, 3)


@pytest.mark.parametrize("predicted_s", [0.0, math.nan, math.inf, -1.0])
def test_an_engine_without_forecasts_says_nothing(predicted_s: float) -> None:
    figures = EngineFigures()
    figures.observe(Scheduling(predicted_s, 0.0), took_s=0.05)
    assert figures.message() is None


def test_the_latest_steps_count() -> None:
    figures = EngineFigures()
    for _ in range(500):
        figures.observe(Scheduling(0.1, 0.1), took_s=0.05)
    for _ in range(2000):
        figures.observe(Scheduling(0.05, 0.05), took_s=0.05)
    assert figures.error < 1e-3


def test_words_leave_out_what_never_happened() -> None:
    quiet = ClientScheduling(0.021, 0.991, 9e-5, 0, 0, 0, 0, 0, 0)
    assert in_words(quiet) == (
        "expects steps to within 2.1%, 99.1% of them end in the time they were composed for, composed in 90 us"
    )
    busy = ClientScheduling(0.0, 1.0, 0.0, 3, 0, 0, 1, 20, 5)
    assert in_words(busy).endswith("3 preemptions, 1 with a malformed contract, 5 of 20 draft tokens accepted")
