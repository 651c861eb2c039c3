"""A recording replayed through another core gives the same answers, and a changed one is found out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from services.slo.admission import AdmissionCore, AdmissionRound, Held, Outcome, RequestVerdict
from services.slo.admission.recording import Event, Replay
from services.slo.admission.recording.asked import Decided
from services.slo.admission.recording.explanation import explain
from services.slo.admission.recording.told import Stepped
from services.slo.contract import Contract
from services.slo.planner import Binding
from simulator.policies.choices import Roles
from tests.unit.services.slo.admission.recording.simulated import recorded
from tests.unit.services.slo.admission.support import START_S


def replayed(roles: Roles, events: list[Event] | None = None) -> tuple[Replay, list[object]]:
    options, link, seed, told = recorded(roles)
    replay = Replay(AdmissionCore(options, link=link, seed=seed))
    return replay, list(replay.differences(told if events is None else events))


@pytest.mark.parametrize("roles", list(Roles))
def test_equal_calls_give_equal_answers(roles: Roles) -> None:
    replay, differences = replayed(roles)
    assert differences == []
    assert replay.answers > 200
    _, _, _, events = recorded(roles)
    kinds = Counter(event.kind for event in events)
    assert {"joined", "stepped", "arrived", "admitted", "changed", "advanced", "filed", "grew", "removed"} <= set(kinds)
    assert kinds["handed_over"] > 0 or roles is Roles.COLOCATED
    assert kinds["left"] > 0 or roles is not Roles.COLOCATED
    outcomes = {verdict.outcome for event in events if isinstance(event, Decided) for verdict in event.answer.verdicts}
    assert {Outcome.GUARANTEED, Outcome.HELD, Outcome.BEST_EFFORT} <= outcomes


def test_the_first_answer_that_differs_is_found() -> None:
    _, _, _, events = recorded(Roles.COLOCATED)
    position, decided = next(
        (index, event)
        for index, event in enumerate(events)
        if isinstance(event, Decided)
        and any(verdict.outcome is Outcome.GUARANTEED for verdict in event.answer.verdicts)
    )
    told = [replace(verdict, outcome=Outcome.REFUSED) for verdict in decided.answer.verdicts]
    changed = replace(decided, answer=replace(decided.answer, verdicts=tuple(told)))
    _, differences = replayed(Roles.COLOCATED, [*events[:position], changed, *events[position + 1 :]])
    assert [difference.position for difference in differences] == [position]  # type: ignore[attr-defined]


def test_another_history_of_steps_is_noticed_in_the_answers() -> None:
    _, _, _, events = recorded(Roles.COLOCATED)
    slower = [
        replace(event, duration_s=1.5 * event.duration_s) if isinstance(event, Stepped) else event for event in events
    ]
    assert replayed(Roles.COLOCATED, slower)[1]


def test_a_request_is_explained_round_by_round() -> None:
    _, _, _, events = recorded(Roles.DISAGGREGATED)
    held = next(
        verdict.request_id
        for event in events
        if isinstance(event, Decided)
        for verdict in event.answer.verdicts
        if verdict.outcome is Outcome.HELD
    )
    lines = list(explain(events, held))
    assert [line.at_s for line in lines] == sorted(line.at_s for line in lines)
    texts = [line.text for line in lines]
    assert texts[0].startswith("came: ")
    assert "TTFT" in texts[0]
    assert any("held, " in text and "forbids a guarantee" in text for text in texts)
    assert any("guaranteed on w0, then w1" in text or "best effort on w0, then w1" in text for text in texts)
    assert any(text.startswith("sent to w0") for text in texts)
    assert any(text.startswith("handed over: ") for text in texts)
    assert texts[-1] == "ended by itself"


def test_who_gave_way_to_another_tenant_is_told_so() -> None:
    verdict = RequestVerdict("r", Outcome.HELD, Held(Contract(), Binding.FAIR_SHARE, 0.05, None))
    event = Decided(START_S, AdmissionRound(7, START_S, (verdict,), math.inf))
    (line,) = explain([event], "r")
    assert line.text == (
        "round 7, 1 request: held, the tenant's share of promises forbids a guarantee; room expected in 50 ms"
    )
