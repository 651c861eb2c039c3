"""The typical arrival is that of median cost among the latest."""

from __future__ import annotations

from services.slo.planner import ArrivalSample
from services.slo.planner.arrival_sample import REFRESHED_AFTER, REMEMBERED


def sampled(costs: list[float]) -> ArrivalSample[float]:
    arrivals = ArrivalSample[float](lambda cost: cost)
    for cost in costs:
        arrivals.note(cost)
    return arrivals


def test_there_is_no_typical_arrival_before_the_first() -> None:
    assert sampled([]).typical() is None
    assert sampled([7.0]).typical() == 7.0


def test_it_is_the_median_and_taken_again_now_and_then() -> None:
    costs = [100.0 - index for index in range(REFRESHED_AFTER)]
    assert sampled(costs).typical() == 100.0, "as at the first"
    assert sampled([*costs, 0.0]).typical() == 84.0, "of 0, 69, 70, ..., 100"


def test_only_the_latest_count() -> None:
    old, new = [1.0] * REMEMBERED, [float(index) for index in range(1000, 1000 + REMEMBERED + 1)]
    assert sampled([*old, *new]).typical() == sorted(new[1:])[REMEMBERED // 2]
