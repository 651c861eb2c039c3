"""What a round's answer makes of a request, and what is learnt of it, one decision at a time."""

from __future__ import annotations

import math

import pytest

from services.slo.admission import Arrival, Assessment, Outcome, RequestFacts, Unservable
from services.slo.admission.assessment import Held
from services.slo.admission.assessor import _held
from services.slo.admission.pending import note_arrival, note_cost, outcome_of
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.contract import Contract
from services.slo.latency_forecast import Forecast, Placement
from services.slo.planner import ArrivalSample, Binding, CostThreshold, Decision, Verdict
from tests.unit.services.slo.admission.support import START_S, contract

WANTED = contract(0.5, 0.05, value=2.0)
ARRIVAL = Arrival(RequestFacts("r", 300, 50), WANTED, START_S)


def assessment(
    binding: Binding = Binding.PREFILL_TIME,
    wanted: Contract = WANTED,
    ttft_s: float = 0.8,
    work_per_value: float | None = 7.0,
) -> Assessment:
    placement = Placement("p1", "d1", START_S + 30.0, Forecast(ttft_s, 2 * ttft_s), Forecast(0.05, 0.06))
    return Assessment(wanted, placement, binding, work_per_value=work_per_value)


@pytest.mark.parametrize(
    ("verdict", "earliest_s", "now_s", "held"),
    [
        (Verdict.HOLD, 0.3, START_S, True),
        (Verdict.HOLD, 0.1, START_S + 0.2, True),
        (Verdict.HOLD, 0.3125, START_S, False),
        (Verdict.HOLD, 0.125, START_S + 0.25, False),
        (Verdict.HOLD, 0.0, START_S, False),
        (Verdict.HOLD, None, START_S, False),
        (Verdict.NOT_GUARANTEED, 0.1, START_S, False),
    ],
)
def test_a_request_is_held_while_its_room_comes_within_the_limit_of_its_arrival(
    verdict: Verdict, earliest_s: float | None, now_s: float, *, held: bool
) -> None:
    decision = Decision(
        "r", verdict, "", "", None, None, 0, Binding.KV_MEMORY, earliest_s, replan_s=0.02, work_per_value=7.0
    )
    answer = _held(ARRIVAL, WANTED, decision, max_hold_s=0.3 + 1e-9, now_s=now_s)
    if not held:
        assert answer is None
        return
    assert answer is not None
    assert (answer.contract, answer.binding) == (WANTED, Binding.KV_MEMORY)
    assert (answer.earliest_guarantee_s, answer.replan_s) == (earliest_s, 0.02)


def test_what_is_not_held_is_guaranteed_served_without_or_refused() -> None:
    refusing = contract(0.5, 0.05, refuse=True)
    assert outcome_of(Held(refusing, Binding.KV_MEMORY, 0.1, None)) is Outcome.HELD, "it may still be guaranteed"
    assert outcome_of(assessment(Binding.NONE)) is Outcome.GUARANTEED
    assert outcome_of(assessment(Binding.NONE, refusing)) is Outcome.GUARANTEED
    assert outcome_of(assessment()) is Outcome.BEST_EFFORT
    assert outcome_of(assessment(wanted=refusing)) is Outcome.REFUSED
    nothing = assessment(Binding.NO_CONTRACT, contract(refuse=True))
    assert outcome_of(nothing) is Outcome.BEST_EFFORT, "there is nothing to refuse"
    assert outcome_of(Unservable.NEVER_FITS) is Outcome.REFUSED


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        (assessment(), True),
        (assessment(ttft_s=0.5), False),
        (assessment(ttft_s=0.501), True),
        (assessment(wanted=contract(tpot_s=0.05), ttft_s=0.1), True),
        (assessment(Binding.NONE), False),
        (assessment(Binding.PRICE), False),
        (assessment(Binding.NO_WORKER), None),
        (assessment(work_per_value=None), None),
    ],
    ids=["late", "in time", "just late", "no TTFT to meet", "guaranteed", "too dear", "no worker", "no room sought"],
)
def test_who_is_late_for_want_of_room_makes_a_cost_threshold(given: Assessment, *, noted: bool | None) -> None:
    threshold = CostThreshold()
    note_cost(threshold, given, START_S)
    assert list(threshold._latest) == ([] if noted is None else [(START_S, 7.0, noted)])


def test_a_typical_request_is_told_in_times_from_its_arrival() -> None:
    sample: ArrivalSample[PromiseWanted] = ArrivalSample(lambda wanted: wanted.cost)
    note_arrival(sample, ARRIVAL, assessment(), 2.0)
    assert sample.typical() == PromiseWanted("r", 300, 300, 0.5, 0.05, 2.0)
    untimed: ArrivalSample[PromiseWanted] = ArrivalSample(lambda wanted: wanted.cost)
    note_arrival(untimed, ARRIVAL, assessment(wanted=contract(tpot_s=0.05)), 1.0)
    assert untimed.typical() == PromiseWanted("r", 300, 300, math.inf, 0.05, 1.0)
