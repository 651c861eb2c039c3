"""From which price on requests leave room for others, and what it brings."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from services.slo.planner import CostThreshold
from services.slo.planner.cost_threshold import FEWEST, REFRESHED_AFTER, REMEMBERED, WINDOW_S


def learnt(works: list[float], turned_down: int) -> CostThreshold:
    """After verdicts on these requests, the first of whom found no room."""
    price = CostThreshold()
    for index, work in enumerate(works):
        price.note(0.0, work, found_no_room=index < turned_down)
    return price


def test_there_is_no_price_while_everybody_finds_room() -> None:
    works = [float(work) for work in range(1, 257)]
    assert learnt(works, turned_down=0).threshold(0.0) == math.inf
    assert learnt(works, turned_down=4).threshold(0.0) == math.inf, "a few are turned down wherever there are bursts"


def test_the_dearest_are_priced_out_as_many_as_find_no_room() -> None:
    works = [float(work) for work in range(1, 257)]
    most = learnt(works, turned_down=64).threshold(0.0)
    priced_out = sum(work > most for work in works)
    assert 50 <= priced_out <= 64


def test_few_requests_make_no_price_and_a_burst_is_forgotten() -> None:
    works = [float(work) for work in range(1, 257)]
    assert learnt(works[: FEWEST - 1], turned_down=FEWEST - 1).threshold(0.0) == math.inf
    price = learnt(works, turned_down=128)
    assert price.threshold(WINDOW_S) < math.inf
    assert price.threshold(WINDOW_S + 1.0) == math.inf


@given(st.lists(st.tuples(st.floats(0.5, 1e5), st.booleans()), min_size=FEWEST, max_size=2 * REMEMBERED))
def test_no_more_are_priced_out_than_found_no_room(verdicts: list[tuple[float, bool]]) -> None:
    verdicts = verdicts[: len(verdicts) // REFRESHED_AFTER * REFRESHED_AFTER]
    price = CostThreshold()
    for work, found_no_room in verdicts:
        price.note(0.0, work, found_no_room=found_no_room)
    latest = verdicts[-REMEMBERED:]
    assert sum(work > price.threshold(0.0) for work, _ in latest) <= sum(found_no_room for _, found_no_room in latest)


def test_at_a_lasting_overload_more_are_promised_with_a_price() -> None:
    """Of twice the work that there is room for; long requests have more time and fit where short ones do not."""
    assert promised_of_4000(priced=True) > 2 * promised_of_4000(priced=False)


def promised_of_4000(*, priced: bool) -> int:
    """Promised in the order in which they come, if they can be done in four times what they take alone."""
    draw, price = random.Random(0), CostThreshold()
    free_s, promised = 0.0, 0
    for index in range(4000):
        now_s, work_s = index / 20, 0.06 * draw.lognormvariate(0.0, 1.0)
        dear = priced and work_s > price.threshold(now_s)
        ends_s = max(free_s, now_s) + work_s
        fits = not dear and ends_s <= now_s + 4 * work_s
        if fits:
            free_s, promised = ends_s, promised + 1
        price.note(now_s, work_s, found_no_room=not fits and not dear)
    return promised
