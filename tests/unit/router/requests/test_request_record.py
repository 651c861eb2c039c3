"""What is remembered of a request says how it ended, and where a missed guarantee lost its time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.requests.finished_message import finished_message
from router.requests.live_request import LiveRequest
from router.requests.phases import Phase, PhaseClock
from router.requests.request_record import (
    KEPT_CHARACTERS,
    NO_CONTRACT,
    OWN_CONTRACT,
    Ending,
    Targets,
    profile_of,
    record_of,
)
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.latency_forecast import Forecast, Placement
from services.state.journal_entry import RequestState
from slos_serve.v1 import sampling_pb2, worker_pb2
from tests.unit.router.router_support import contract, parsed

ARRIVAL_S = 300.0


def live(tiny_model: Path, *, guaranteed: bool = True, wanted: Contract | None = None) -> LiveRequest:
    wanted = contract(ttft_s=0.5, tpot_s=0.1) if wanted is None else wanted
    request = LiveRequest(
        parsed=parsed("r", 10, wanted),
        contract=wanted,
        meter=AttainmentMeter(wanted, ARRIVAL_S),
        clock=PhaseClock(ARRIVAL_S),
        text=Tokenizer(tiny_model).stream(skip_special_tokens=True),
        stops=StopStrings(()),
        placement=Placement("p1", "d1", 1.0, Forecast(0.1, 0.2), Forecast(0.05, 0.1)),
        guaranteed=guaranteed,
    )
    request.clock.enter(Phase.QUEUE, ARRIVAL_S + 0.05)
    request.submit_prompt("p1", 0, ARRIVAL_S + 0.2)
    request.begin_prefill(4, ARRIVAL_S + 0.2, ARRIVAL_S + 0.3)
    return request


def ended(request: LiveRequest, state: RequestState, first_token_s: float) -> LiveRequest:
    request.end_prefill(ARRIVAL_S + first_token_s)
    request.meter.note_tokens(1, ARRIVAL_S + first_token_s)
    request.enter(state)
    return request


@pytest.mark.parametrize(
    ("state", "guaranteed", "first_token_s", "ending"),
    [
        (RequestState.DONE, True, 0.4, Ending.KEPT),
        (RequestState.DONE, True, 0.6, Ending.MISSED),
        (RequestState.DONE, False, 0.6, Ending.UNPROMISED),
        (RequestState.FAILED, True, 0.4, Ending.FAILED),
        (RequestState.CANCELLED, True, 0.4, Ending.CANCELLED),
        (RequestState.DECODING, True, 0.4, Ending.RUNNING),
    ],
)
def test_a_record_says_how_a_request_ended(
    tiny_model: Path, state: RequestState, guaranteed: bool, first_token_s: float, ending: Ending
) -> None:
    request = ended(live(tiny_model, guaranteed=guaranteed), state, first_token_s)
    record = record_of(request, ARRIVAL_S + 1.0, lambda _: 0.0, "in words")
    assert (record.ending, record.guaranteed, record.detail) == (ending, guaranteed, "in words")
    assert (record.arrival_s, record.ended_s) == (ARRIVAL_S, ARRIVAL_S + 1.0)
    assert (record.broken_by is not None) is (guaranteed and first_token_s > 0.5)
    assert record.phase is Phase.HANDOVER
    assert (record.prefill_worker_id, record.decode_worker_id) == ("p1", "d1")
    assert (record.prompt_tokens, record.cached_tokens) == (10, 4)
    assert record.targets == Targets(0.5, None, (0.1,))


def test_the_time_that_any_worker_would_need_is_not_what_lost_a_promise(tiny_model: Path) -> None:
    request = ended(live(tiny_model), RequestState.DONE, 0.6)
    assert record_of(request, ARRIVAL_S + 1.0, lambda _: 0.0).broken_by is Phase.PREFILL
    assert record_of(request, ARRIVAL_S + 1.0, lambda _: 0.35).broken_by is Phase.QUEUE


def test_an_idle_worker_is_asked_about_only_when_a_promise_was_missed(tiny_model: Path) -> None:
    def unwanted(_: LiveRequest) -> float:
        raise AssertionError

    for guaranteed, first_token_s in ((True, 0.4), (False, 0.6)):
        record_of(ended(live(tiny_model, guaranteed=guaranteed), RequestState.DONE, first_token_s), 9.0, unwanted)


def test_texts_of_clients_are_cut(tiny_model: Path) -> None:
    request = ended(live(tiny_model), RequestState.DONE, 0.4)
    request.parsed = replace(request.parsed, tenant="t" * 1000, application="a" * 1000)
    record = record_of(request, ARRIVAL_S + 1.0, lambda _: 0.0)
    assert (record.tenant, record.application) == ("t" * KEPT_CHARACTERS, "a" * KEPT_CHARACTERS)


def test_requests_are_counted_under_a_profile_or_one_of_two_names() -> None:
    named = Contract(PrefillTarget(ttft_s=0.5), profile="chatbot")
    assert [profile_of(wanted) for wanted in (named, contract(ttft_s=0.5), contract())] == [
        "chatbot",
        OWN_CONTRACT,
        NO_CONTRACT,
    ]


def test_the_last_message_tells_what_was_achieved_and_where_the_time_went(tiny_model: Path) -> None:
    wanted = Contract(PrefillTarget(ttft_s=0.5), (DecodeTarget(0.1),))
    request = live(tiny_model, wanted=wanted)
    output = worker_pb2.RequestOutput(token_ids=[70])
    request.take_tokens(output, ARRIVAL_S + 0.6)
    request.end_prefill(ARRIVAL_S + 0.6)
    request.take_tokens(output, ARRIVAL_S + 0.9)
    finished = finished_message(request, sampling_pb2.FINISH_REASON_STOP, "2", ARRIVAL_S + 1.0).finished
    assert (finished.reason, finished.matched_stop) == (sampling_pb2.FINISH_REASON_STOP, "2")
    assert (finished.prompt_tokens, finished.completion_tokens, finished.cached_tokens) == (10, 2, 4)
    achieved = finished.achieved
    assert (achieved.kept, achieved.missed) == (False, "TTFT 0.600 s > 0.500 s")
    assert [achieved.ttft_s, achieved.worst_gap_s] == pytest.approx([0.6, 0.3])
    (stage,) = achieved.stages
    assert (stage.tokens, stage.late_tokens) == (1, 1)
    assert [stage.mean_tpot_s, stage.required_tpot_s] == pytest.approx([0.3, 0.3])
    phases = finished.phases
    spent_s = [phases.plan_s, phases.queue_s, phases.prefill_s, phases.handover_s]
    assert spent_s == [pytest.approx(value) for value in (0.05, 0.15, 0.4, 0.4)]
