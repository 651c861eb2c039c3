"""Every observer is told of every event, with what belongs to it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from router.requests.events import RequestEvents, RequestObserver

EVENTS: dict[str, tuple[object, ...]] = {
    "received": (),
    "refused": ("refusal",),
    "admitted": ("request",),
    "entered": ("request",),
    "delivered": ("request",),
    "restarted": ("request",),
    "kv_recomputed": ("request",),
    "ended": ("request", "record", "error"),
    "worker_lost": ("worker",),
    "round_ended": (0.25,),
    "stepped": ("worker", "step"),
}


def observer(told: list[tuple[object, ...]], name: str) -> RequestObserver:
    """An observer that writes down whatever it is told."""

    def method(event: str) -> Any:
        return lambda self, *arguments: told.append((name, event, *arguments))

    methods = {f"on_{event}": method(event) for event in EVENTS}
    return cast("RequestObserver", type(name, (RequestObserver,), methods)())


def test_the_list_of_events_is_whole() -> None:
    assert {f"on_{event}" for event in EVENTS} == {name for name in vars(RequestObserver) if name.startswith("on_")}
    assert set(EVENTS) == {name for name in vars(RequestEvents) if not name.startswith("_")}


@pytest.mark.parametrize("event", EVENTS)
def test_every_observer_is_told_in_order(event: str) -> None:
    told: list[tuple[object, ...]] = []
    events = RequestEvents(observer(told, "first"), RequestObserver(), observer(told, "second"))
    getattr(events, event)(*EVENTS[event])
    assert told == [("first", event, *EVENTS[event]), ("second", event, *EVENTS[event])]
