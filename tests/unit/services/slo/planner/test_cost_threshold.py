"""From which cost on requests leave headroom for others, and what it brings."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.planner import Binding, CostThreshold, ReservedHeadroom, reserved_headroom
from services.slo.planner.cost_threshold import FEWEST, HEADROOM_REQUESTS, REFRESHED_AFTER, REMEMBERED, WINDOW_S

NOW_S = 5000.0


def learnt(works: list[float], turned_down: int) -> CostThreshold:
    """Return what is learnt from verdicts on these requests, the first of which found no room."""
    threshold = CostThreshold()
    for index, work in enumerate(works):
        threshold.note(NOW_S, work, found_no_room=index < turned_down)
    return threshold


def works(count: int) -> list[float]:
    return [float(work) for work in range(1, count + 1)]


def test_there_is_no_threshold_while_everybody_finds_room() -> None:
    assert learnt(works(256), turned_down=0).threshold(NOW_S) == math.inf
    assert learnt(works(256), turned_down=13).threshold(NOW_S) == math.inf, (
        "a few are turned down wherever there are bursts"
    )


def test_as_many_are_above_the_threshold_as_find_no_room_below_it() -> None:
    """Of 256 the 12.8 that are tolerated do not count."""
    assert learnt(works(256), turned_down=64).threshold(NOW_S) == 256 - 51


def test_few_requests_make_no_threshold() -> None:
    assert learnt(works(FEWEST - 1), turned_down=FEWEST - 1).threshold(NOW_S) == math.inf
    assert learnt(works(FEWEST), turned_down=FEWEST).threshold(NOW_S) < math.inf


def test_a_burst_is_forgotten() -> None:
    threshold = learnt(works(256), turned_down=128)
    assert threshold.threshold(NOW_S + WINDOW_S) < math.inf
    assert threshold.threshold(NOW_S + WINDOW_S + 1.0) == math.inf


def test_only_the_latest_count() -> None:
    threshold = learnt(works(256), turned_down=256)
    for work in works(REMEMBERED):
        threshold.note(NOW_S, work, found_no_room=False)
    assert threshold.threshold(NOW_S) == math.inf


@pytest.mark.parametrize(
    ("binding", "late", "counts"),
    [
        (Binding.PREFILL_TIME, True, True),
        (Binding.KV_MEMORY, True, True),
        (Binding.PREFILL_TIME, False, False),
        (Binding.NONE, True, False),
        (Binding.PRICE, True, False),
    ],
)
def test_who_found_no_room_below_the_threshold_and_will_be_late_raises_it(
    binding: Binding, late: bool, counts: bool
) -> None:
    threshold = CostThreshold()
    for work in works(256):
        threshold.settled(NOW_S, work, binding, late=late)
    assert (threshold.threshold(NOW_S) < math.inf) == counts


class TestReservedHeadroom:
    def test_what_is_configured_holds_whatever_is_learnt(self) -> None:
        scarce = learnt(works(256), turned_down=256)
        assert reserved_headroom(2.0, scarce, NOW_S) == ReservedHeadroom(2.0, 0.0)
        assert reserved_headroom(2.0, None, NOW_S) == ReservedHeadroom(2.0, 0.0)

    def test_otherwise_it_is_left_by_those_above_the_threshold_while_there_is_one(self) -> None:
        scarce = learnt(works(256), turned_down=256)
        assert reserved_headroom(0.0, scarce, NOW_S) == ReservedHeadroom(HEADROOM_REQUESTS, scarce.threshold(NOW_S))
        assert reserved_headroom(0.0, scarce, NOW_S + WINDOW_S + 1.0) is None
        assert reserved_headroom(0.0, None, NOW_S) is None


@given(st.lists(st.tuples(st.floats(0.5, 1e5), st.booleans()), min_size=FEWEST, max_size=2 * REMEMBERED))
def test_no_more_are_above_the_threshold_than_found_no_room(verdicts: list[tuple[float, bool]]) -> None:
    verdicts = verdicts[: len(verdicts) // REFRESHED_AFTER * REFRESHED_AFTER]
    threshold = CostThreshold()
    for work, found_no_room in verdicts:
        threshold.note(NOW_S, work, found_no_room=found_no_room)
    latest = verdicts[-REMEMBERED:]
    above = sum(work > threshold.threshold(NOW_S) for work, _ in latest)
    assert above <= sum(found_no_room for _, found_no_room in latest)


def test_at_a_lasting_overload_more_are_promised_with_a_threshold() -> None:
    """There is twice the work that there is room for; long requests have more time and fit where short ones do not."""
    assert promised_of_4000(with_threshold=True) > 2 * promised_of_4000(with_threshold=False)


def promised_of_4000(*, with_threshold: bool) -> int:
    """Return the number promised, in the order of arrival, of those done in four times what they take alone."""
    draw, threshold = random.Random(0), CostThreshold()
    free_s, promised = 0.0, 0
    for index in range(4000):
        now_s, work_s = index / 20, 0.06 * draw.lognormvariate(0.0, 1.0)
        above = with_threshold and work_s > threshold.threshold(now_s)
        ends_s = max(free_s, now_s) + work_s
        fits = not above and ends_s <= now_s + 4 * work_s
        if fits:
            free_s, promised = ends_s, promised + 1
        threshold.note(now_s, work_s, found_no_room=not fits and not above)
    return promised
