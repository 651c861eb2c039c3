"""The requests of a router are found by id, and those that wait in it are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.phases import PhaseClock
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.attainment import AttainmentMeter
from services.slo.latency_forecast import Forecast, Placement
from services.state.journal_entry import RequestState
from tests.unit.router.router_support import contract, parsed


def live(tiny_model: Path, request_id: str) -> LiveRequest:
    wanted = contract(ttft_s=1.0)
    return LiveRequest(
        parsed=parsed(request_id, 10, wanted),
        contract=wanted,
        meter=AttainmentMeter(wanted, 50.0),
        clock=PhaseClock(50.0),
        text=Tokenizer(tiny_model).stream(skip_special_tokens=True),
        stops=StopStrings(()),
        placement=Placement("p1", "d1", 51.0, Forecast(0.1, 0.2), Forecast(0.05, 0.1)),
    )


@pytest.fixture
def requests(tiny_model: Path) -> LiveRequests:
    """Three queued requests: `a`, `b` and `c`."""
    requests = LiveRequests()
    for request_id in "abc":
        requests.file(live(tiny_model, request_id))
    return requests


def test_requests_are_found_until_they_end(requests: LiveRequests) -> None:
    request = requests.get("b")
    assert request is not None
    assert request.request_id == "b"
    requests.remove(request)
    assert (requests.get("b"), len(requests)) == (None, 2)


def test_requests_may_end_while_they_are_gone_through(requests: LiveRequests) -> None:
    for request in requests:
        requests.remove(request)
    assert len(requests) == 0


def test_only_what_waits_in_the_router_counts_as_queued(requests: LiveRequests) -> None:
    counts = [requests.queued_count()]
    first, second, third = requests
    for request, state in ((first, RequestState.PREFILLING), (second, RequestState.PREFILLING)):
        request.enter(state)
        requests.file(request)
    counts.append(requests.queued_count())
    second.enter(RequestState.QUEUED)
    requests.file(second)
    counts.append(requests.queued_count())
    requests.remove(third)
    assert [*counts, requests.queued_count()] == [3, 1, 2, 1]


def test_the_requests_that_the_core_speaks_of_are_found_in_its_order(requests: LiveRequests) -> None:
    first, second, third = requests
    assert requests.of([third, first]) == [third, first]
    assert second not in requests.of([first])
