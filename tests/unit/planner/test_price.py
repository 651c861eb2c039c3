"""While not everybody finds room, nothing is promised to the dearest; who is priced out says so."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from services.slo.planner import (
    AdmissionPrice,
    Binding,
    Candidate,
    Decision,
    Problem,
    Profile,
    PromisedPrefill,
    StepBound,
    Tiers,
    Topology,
    Worker,
    plan_round,
)
from services.slo.planner.price import FEWEST, REFRESHED_AFTER, REMEMBERED, WINDOW_S

PROFILE = Profile(StepBound(0.01, 1e-3), Tiers((0.1,)), 512, 0.1)


def learnt(works: list[float], turned_down: int, at_s: float = 0.0) -> AdmissionPrice:
    """After verdicts on these requests, the first of whom found no room."""
    price = AdmissionPrice()
    for index, work in enumerate(works):
        price.note(at_s, work, found_no_room=index < turned_down)
    return price


def test_there_is_no_price_while_everybody_finds_room() -> None:
    works = [float(work) for work in range(1, 257)]
    assert learnt(works, turned_down=0).most(0.0) == math.inf
    assert learnt(works, turned_down=4).most(0.0) == math.inf, "a few are turned down wherever there are bursts"


def test_the_dearest_are_priced_out_as_many_as_find_no_room() -> None:
    works = [float(work) for work in range(1, 257)]
    most = learnt(works, turned_down=64).most(0.0)
    priced_out = sum(work > most for work in works)
    assert 50 <= priced_out <= 64


def test_few_requests_make_no_price_and_a_burst_is_forgotten() -> None:
    works = [float(work) for work in range(1, 257)]
    assert learnt(works[: FEWEST - 1], turned_down=FEWEST - 1).most(0.0) == math.inf
    price = learnt(works, turned_down=128)
    assert price.most(WINDOW_S) < math.inf
    assert price.most(WINDOW_S + 1.0) == math.inf


@given(st.lists(st.tuples(st.floats(0.5, 1e5), st.booleans()), min_size=FEWEST, max_size=2 * REMEMBERED))
def test_no_more_are_priced_out_than_found_no_room(verdicts: list[tuple[float, bool]]) -> None:
    verdicts = verdicts[: len(verdicts) // REFRESHED_AFTER * REFRESHED_AFTER]
    price = AdmissionPrice()
    for work, found_no_room in verdicts:
        price.note(0.0, work, found_no_room=found_no_room)
    latest = verdicts[-REMEMBERED:]
    assert sum(work > price.most(0.0) for work, _ in latest) <= sum(found_no_room for _, found_no_room in latest)


def test_at_a_lasting_overload_more_are_promised_with_a_price() -> None:
    """Of twice the work that there is room for; long requests have more time and fit where short ones do not."""
    assert promised_of_4000(priced=True) > 2 * promised_of_4000(priced=False)


def promised_of_4000(*, priced: bool) -> int:
    """Promised in the order in which they come, if they can be done in four times what they take alone."""
    draw, price = random.Random(0), AdmissionPrice()
    free_s, promised = 0.0, 0
    for index in range(4000):
        now_s, work_s = index / 20, 0.06 * draw.lognormvariate(0.0, 1.0)
        dear = priced and work_s > price.most(now_s)
        ends_s = max(free_s, now_s) + work_s
        fits = not dear and ends_s <= now_s + 4 * work_s
        if fits:
            free_s, promised = ends_s, promised + 1
        price.note(now_s, work_s, found_no_room=not fits and not dear)
    return promised


TYPICAL = Candidate("typical", 50, 60, 0.5, 0)
LONG, SHORT = Candidate("long", 400, 500, 2.0, 0), Candidate("short", 50, 60, 2.0, 0)
WORTH = Candidate("worth", 400, 500, 2.0, 0, value=10.0)
KNOWN = Candidate("known", 400, 500, 2.0, 0, cached=(("w", 384),))


def decisions(candidate: Candidate, booked: int, dearest: float) -> Decision:
    """On a worker that has promised so many tokens of a prompt, due in 2 s."""
    promised = (PromisedPrefill(2.0, booked),) if booked else ()
    workers = (Worker("w", PROFILE, True, True, 100_000, 100_000, promised=promised),)
    (decision,) = plan_round(
        Problem(workers, Topology.of(workers), (candidate,), newcomer=TYPICAL, newcomers=4.0, dearest=dearest)
    ).decisions
    return decision


def test_who_is_dearer_leaves_room_or_is_told_so() -> None:
    assert decisions(LONG, 1380, dearest=400.0).guaranteed, "it is worth its price"
    priced_out = decisions(LONG, 1380, dearest=100.0)
    assert not priced_out.guaranteed
    assert priced_out.binding is Binding.PRICE
    assert priced_out.work_per_value == 400.0
    assert decisions(LONG, 0, dearest=100.0).guaranteed, "there is room for both"
    for candidate in (SHORT, WORTH, KNOWN):
        assert decisions(candidate, 1380, dearest=100.0).guaranteed
    full = decisions(LONG, 1900, dearest=100.0)
    assert not full.guaranteed
    assert full.binding is Binding.PREFILL_TIME, "there is no room at any price"
