"""What the router remembers: bounded, and what went wrong is not pushed out by what went well."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource

from router.observability.history import History, Window, Windows
from router.observability.history.history import TURNED_AWAY
from router.observability.history.windows import KEPT_WINDOWS, WINDOW_S
from router.requests.events import Refusal
from router.requests.phases import Phase
from router.requests.planning_log import PlanningLog
from router.requests.request_record import (
    KEPT_CHARACTERS,
    NO_CONTRACT,
    OWN_CONTRACT,
    Ending,
    RequestRecord,
    Targets,
    refusal_record,
)
from services.rpc.errors import InvalidRequestError, OverloadedError
from services.slo.contract import Contract, DecodeTarget
from services.telemetry.traces import Traces
from tests.unit.router.router_support import contract, parsed


def record(request_id: str, ending: Ending, ended_s: float, profile: str = "chatbot") -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        tenant="",
        application="",
        profile=profile,
        targets=Targets(None, None, ()),
        guaranteed=ending in (Ending.KEPT, Ending.MISSED),
        ending=ending,
        arrival_s=ended_s - 1.0,
        ended_s=ended_s,
        prompt_tokens=10,
        planning=PlanningLog(),
        phases_s=dict.fromkeys(Phase, 0.125),
        broken_by=Phase.DECODE if ending is Ending.MISSED else None,
    )


def test_what_went_wrong_outlives_any_number_of_good_requests() -> None:
    history = History(kept_records=3)
    history.add(record("bad", Ending.MISSED, 1.0))
    for index in range(100):
        history.add(record(f"good-{index}", Ending.KEPT, 2.0 + index))
    assert [kept.request_id for kept in history.trouble(10)] == ["bad"]
    assert [kept.request_id for kept in history.latest(2)] == ["good-99", "good-98"]
    assert history.find("bad") is not None
    assert history.find("good-96") is None


@given(
    endings=st.lists(st.tuples(st.sampled_from(list(Ending)), st.integers(0, 20)), max_size=200),
    kept=st.integers(1, 5),
)
def test_no_more_is_kept_than_there_is_room_for(endings: list[tuple[Ending, int]], kept: int) -> None:
    history = History(kept_records=kept)
    for index, (ending, name) in enumerate(endings):
        history.add(record(f"r{name}", ending, float(index)))
    shown = history.latest(1000)
    assert len(shown) <= 2 * kept
    assert len(history._by_id) <= 2 * kept
    newest = {}
    for index, (_, name) in enumerate(endings):
        newest[f"r{name}"] = float(index)
    for one in shown:
        found = history.find(one.request_id)
        assert found is None or found.ended_s == newest[one.request_id], "an id that came again is the later request"


def test_windows_count_by_profile_and_keep_an_hour() -> None:
    windows = Windows()
    for index in range(KEPT_WINDOWS + 50):
        now_s = index * WINDOW_S + 3.0
        windows.at(now_s).of("coder").add(record("a", Ending.KEPT, now_s, "coder"))
    now_s = (KEPT_WINDOWS + 49) * WINDOW_S + 3.0
    windows.at(now_s).of("chatbot").add(record("b", Ending.MISSED, now_s))
    assert len(windows.since(0.0, now_s)) == KEPT_WINDOWS
    recent = windows.totals(now_s - 25.0, now_s)
    assert recent["coder"].ended == {Ending.KEPT: 4}
    assert recent["chatbot"].broken_by == {Phase.DECODE: 1}
    assert recent["coder"].phases_s[Phase.QUEUE] == pytest.approx(4 * 0.125)


def test_windows_hold_what_ended_within_them() -> None:
    windows = Windows()
    first = windows.at(70.0)
    assert windows.at(79.0) is first
    assert windows.at(80.0) is not first
    for ending, at_s in ((Ending.MISSED, 81.0), (Ending.FAILED, 82.0), (Ending.KEPT, 91.0)):
        windows.at(at_s).of("coder").add(replace(record("a", ending, at_s, "coder"), broken_by=Phase.QUEUE))
    totals = windows.totals(70.0, 92.0)["coder"]
    assert totals.broken_by == {Phase.QUEUE: 1}, "a failure is counted as one, and no promise was missed by the third"
    assert totals.served == 3


def test_as_many_requests_are_remembered_as_there_is_room_for() -> None:
    history = History(kept_records=3)
    for index in range(4):
        history.add(record(f"r{index}", Ending.KEPT, 70.0 + index))
    assert [kept.request_id for kept in history.latest(9)] == ["r3", "r2", "r1"]


def test_a_quiet_hour_empties_the_windows() -> None:
    windows = Windows()
    windows.at(5.0).of("coder").add(record("a", Ending.KEPT, 5.0))
    assert windows.since(0.0, 5.0 + KEPT_WINDOWS * WINDOW_S) == []
    assert windows.at(7.0) == Window(0.0, windows.at(7.0).tallies)


def test_refusals_are_counted_by_what_binds() -> None:
    history = History()
    refused = refusal_record(parsed("r", 5, contract(0.1, refuse=True)), PlanningLog(), 1.0, 1.5, "no room")
    history.add_refused(refused, OverloadedError("no room", metadata={"binding": "PREFILL_TIME"}))
    history.add_unparsed(InvalidRequestError("nonsense", field="text"), 2.0)
    totals = history.windows.totals(0.0, 2.0)
    assert totals[OWN_CONTRACT].refused_by == {"PREFILL_TIME": 1}
    assert totals[TURNED_AWAY].refused_by == {"INVALID_REQUEST": 1}
    assert [kept.ending for kept in history.refusals(5)] == [Ending.REFUSED]
    assert history.latest(5) == []


def test_a_refusal_is_remembered_as_far_as_it_was_understood() -> None:
    history, trace = History(), Traces(Resource.get_empty(), 0.0, None).begin()
    asked = parsed("made here", 5, contract(0.1, refuse=True))
    history.on_refused(Refusal(OverloadedError("no room"), trace, "", 70.0, 70.5, asked, PlanningLog()))
    history.on_refused(Refusal(InvalidRequestError("nonsense"), trace, "mine", 71.0, 71.5, None, PlanningLog()))
    (kept,) = history.refusals(5)
    assert (kept.request_id, kept.arrival_s, kept.ended_s, kept.detail) == ("made here", 70.0, 70.5, "no room")
    assert kept.trace_id == trace.trace_id
    totals = history.windows.totals(0.0, 72.0)
    assert {name: dict(tally.refused_by) for name, tally in totals.items()} == {
        OWN_CONTRACT: {"OVERLOADED": 1},
        TURNED_AWAY: {"INVALID_REQUEST": 1},
    }


def test_texts_of_clients_are_cut_and_those_in_contracts_not_kept() -> None:
    long = "x" * 1_000_000
    wanted = Contract(decode=(DecodeTarget(0.1, ends_with="x" * 1024), DecodeTarget(0.2)))
    asked = replace(parsed("r", 5, wanted), tenant=long, application=long)
    kept = refusal_record(asked, PlanningLog(), 0.0, 0.0, "")
    assert (len(kept.tenant), len(kept.application)) == (KEPT_CHARACTERS, KEPT_CHARACTERS)
    assert kept.targets == Targets(None, None, (0.1, 0.2))
    assert refusal_record(parsed("r", 5, contract()), PlanningLog(), 0.0, 0.0, "").profile == NO_CONTRACT
