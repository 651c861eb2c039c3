"""Every received request is either admitted or refused, whatever becomes of the call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest
from opentelemetry.sdk.resources import Resource

from router.requests.events import Refusal, RequestEvents, RequestObserver
from router.requests.intake import Intake
from router.requests.live_request import LiveRequest
from router.requests.planning_log import PlanningLog
from services.rpc.errors import CancelledRequestError, OverloadedError, PlanningFailedError
from services.telemetry.traces import Traces
from tests.unit.router.router_support import contract, parsed

TRACE = Traces(Resource.get_empty(), 0.0, None).begin()
LIVE = cast("LiveRequest", object())


@dataclass(slots=True)
class Account(RequestObserver):
    told: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def on_received(self) -> None:
        self.told.append("received")

    def on_admitted(self, request: LiveRequest) -> None:
        self.told.append("admitted")

    def on_refused(self, refusal: Refusal) -> None:
        self.told.append("refused")
        self.refusals.append(refusal)


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
def intake(account: Account) -> Intake:
    return Intake(RequestEvents(account), "mine", TRACE, arrival_s=70.0, clock=lambda: 70.5)


def test_an_admitted_request_is_not_refused(intake: Intake, account: Account) -> None:
    with intake:
        assert account.told == ["received"]
        intake.admit(LIVE)
    assert account.told == ["received", "admitted"]


def test_a_refused_request_says_why_and_when(intake: Intake, account: Account) -> None:
    error, asked, planning = OverloadedError("full"), parsed("made here", 5, contract()), PlanningLog()
    intake.understood(asked, planning)
    with pytest.raises(OverloadedError), intake:
        raise error
    assert account.told == ["received", "refused"]
    assert account.refusals == [Refusal(error, TRACE, "mine", 70.0, 70.5, asked, planning)]


def test_a_request_that_was_not_understood_is_refused_without_what_it_said(intake: Intake, account: Account) -> None:
    with pytest.raises(OverloadedError), intake:
        raise OverloadedError("full")
    assert account.refusals[0].parsed is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (asyncio.CancelledError(), CancelledRequestError),
        (GeneratorExit(), CancelledRequestError),
        (KeyError("x"), PlanningFailedError),
    ],
)
def test_a_call_that_breaks_off_is_refused_as_well(
    intake: Intake, account: Account, error: BaseException, told: type[Exception]
) -> None:
    with pytest.raises(type(error)), intake:
        raise error
    assert [type(refusal.error) for refusal in account.refusals] == [told]


def test_a_client_that_leaves_once_admitted_is_not_refused(intake: Intake, account: Account) -> None:
    def leave() -> None:
        intake.admit(LIVE)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError), intake:
        leave()
    assert account.told == ["received", "admitted"]
