"""The counters of a router tell requests by their verdicts and their ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.observability.counters import Counters
from router.requests.live_request import LiveRequest
from router.requests.request_record import Ending
from tests.unit.router.observability.test_history import record

REQUEST = cast("LiveRequest", SimpleNamespace())


@pytest.mark.parametrize(
    ("ending", "counted"),
    [
        (Ending.KEPT, {"finished": 1, "kept": 1}),
        (Ending.MISSED, {"finished": 1, "missed": 1}),
        (Ending.UNPROMISED, {"finished": 1}),
        (Ending.CANCELLED, {"cancelled": 1}),
        (Ending.FAILED, {"failed": 1}),
    ],
)
def test_an_end_is_counted_once(ending: Ending, counted: dict[str, int]) -> None:
    counters = Counters()
    counters.on_ended(REQUEST, record("r", ending, 70.0), None)
    assert counters == Counters(**cast("dict[str, Any]", counted))


def test_requests_are_counted_by_their_verdict() -> None:
    counters = Counters()
    for guaranteed in (True, True, False):
        counters.on_admitted(cast("LiveRequest", SimpleNamespace(guaranteed=guaranteed)))
    assert (counters.guaranteed, counters.best_effort) == (2, 1)


def test_the_durations_of_rounds_add_up() -> None:
    counters = Counters()
    counters.on_round_ended(0.25)
    counters.on_round_ended(0.5)
    assert (counters.rounds, counters.planning_s) == (2, 0.75)
    assert (counters.message().rounds, counters.message().planning_s) == (2, 0.75)
