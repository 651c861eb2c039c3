"""An admitted request keeps account of its output, its phases and its attempts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from router.requests.held_lease import HeldLease
from router.requests.live_request import LiveRequest, RequestEndedError
from router.requests.phases import Phase, PhaseClock
from services.engine.kv.handle import KvHandle
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.admission import Progress
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.latency_forecast import Forecast, Placement
from services.state.journal_entry import RequestState
from slos_serve.v1 import inference_pb2, sampling_pb2, worker_pb2
from tests.unit.router.router_support import FACTS, contract, parsed

ARRIVAL_S = 500.0
LETTER_A = 81
PLACEMENT = Placement("p1", "d1", ARRIVAL_S + 1.0, Forecast(0.1, 0.2), Forecast(0.05, 0.1))
ELSEWHERE = Placement("p2", "d2", ARRIVAL_S + 7.0, Forecast(0.3, 0.4), Forecast(0.05, 0.1))

Make = Callable[..., LiveRequest]


@pytest.fixture
def make(tiny_model: Path) -> Make:
    tokenizer = Tokenizer(tiny_model)

    def make(
        wanted: Contract | None = None,
        *,
        guaranteed: bool = True,
        stop: tuple[str, ...] = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
        placement: Placement = PLACEMENT,
    ) -> LiveRequest:
        wanted = contract(ttft_s=1.0, tpot_s=0.1) if wanted is None else wanted
        asked = parsed("r", 10, wanted)
        sampling = replace(asked.sampling, min_tokens=min_tokens, logprobs=logprobs)
        return LiveRequest(
            parsed=replace(asked, sampling=sampling, stop=stop),
            contract=wanted,
            meter=AttainmentMeter(wanted, ARRIVAL_S),
            clock=PhaseClock(ARRIVAL_S),
            text=tokenizer.stream(skip_special_tokens=True),
            stops=StopStrings(stop),
            placement=placement,
            guaranteed=guaranteed,
        )

    return make


def letters(text: str, logprobs: int = 0) -> worker_pb2.RequestOutput:
    positions = [sampling_pb2.TokenLogprobs() for _ in range(logprobs)]
    token_ids = [LETTER_A + ord(letter) - ord("a") for letter in text]
    return worker_pb2.RequestOutput(token_ids=token_ids, logprobs=positions)


async def chunk(request: LiveRequest) -> inference_pb2.TokenChunk:
    message = await request.output_buffer.next()
    assert isinstance(message, inference_pb2.GenerateResponse)
    return message.tokens


def test_what_was_promised_stays_when_a_request_moves(make: Make) -> None:
    request = make()
    assert (request.planned, request.decode_worker_id, request.rank_s) == (True, "d1", ARRIVAL_S + 1.0)
    request.move(ELSEWHERE)
    assert (request.placement, request.decode_worker_id, request.promised) == (ELSEWHERE, "d2", PLACEMENT)
    assert request.rank_s == ARRIVAL_S + 1.0, "its rank in the queue is its own"


def test_room_in_the_plan_comes_with_a_due_time(make: Make) -> None:
    request = make(contract(), guaranteed=False)
    assert not request.planned
    request.give_room(ELSEWHERE)
    assert (request.planned, request.rank_s, request.decode_worker_id) == (True, ARRIVAL_S + 7.0, "d2")


def test_a_request_is_at_the_worker_of_its_state(make: Make) -> None:
    request = make()
    request.submit_prompt("p1", 0, ARRIVAL_S)
    at = []
    for state in (RequestState.QUEUED, RequestState.PREFILLING, RequestState.HANDOVER, RequestState.DECODING):
        request.enter(state)
        at.append(request.worker_id)
    request.enter(RequestState.DONE)
    assert [*at, request.worker_id] == ["", "p1", "d1", "d1", ""]


def test_the_admission_core_reads_progress_and_the_worker_of_the_prompt(make: Make) -> None:
    request = make()
    told = [(request.progress, request.prompt_worker_id)]
    request.submit_prompt("p2", 0, ARRIVAL_S)
    for state in (RequestState.PREFILLING, RequestState.HANDOVER, RequestState.DECODING):
        request.enter(state)
        told.append((request.progress, request.prompt_worker_id))
    assert told == [
        (Progress.QUEUED, "p1"),
        (Progress.PREFILLING, "p2"),
        (Progress.HANDOVER, "p2"),
        (Progress.DECODING, "p2"),
    ]


@pytest.mark.parametrize("final", [RequestState.DONE, RequestState.FAILED, RequestState.CANCELLED])
def test_a_request_ends_once(make: Make, final: RequestState) -> None:
    request = make()
    request.enter(final)
    with pytest.raises(RequestEndedError, match=f"r is {final.value}, and was to be queued"):
        request.enter(RequestState.QUEUED)


def test_phases_follow_what_workers_report(make: Make) -> None:
    request = make()
    request.submit_prompt("p1", 32, ARRIVAL_S + 1.0)
    assert (request.prefilled_tokens, request.believed_cached_tokens) == (32, 32)
    request.begin_prefill(16, ARRIVAL_S + 1.5, ARRIVAL_S + 2.0)
    request.end_prefill(ARRIVAL_S + 2.0)
    request.submit_decode(ARRIVAL_S + 2.0)
    pull = inference_pb2.KvPull(bytes=7)
    request.begin_decode(worker_pb2.RequestTimings(wait_s=0.25, cached_tokens=9, kv_pull=pull), ARRIVAL_S + 3.0)
    spent_s = request.clock.spent_s(ARRIVAL_S + 4.0)
    assert {phase: spent_s[phase] for phase in Phase if spent_s[phase]} == {
        Phase.PLAN: 1.0,
        Phase.PREFILL_WAIT: 0.5,
        Phase.PREFILL: 0.5,
        Phase.HANDOVER: 0.25,
        Phase.DECODE: 1.75,
    }
    assert (request.cached_tokens, request.kv_pull, request.kv_recomputes) == (16, pull, 0)


def test_the_largest_hit_of_a_cache_is_what_counts(make: Make) -> None:
    request = make()
    for cached_tokens in (4, 8, 6):
        request.begin_prefill(cached_tokens, ARRIVAL_S, ARRIVAL_S)
    assert request.cached_tokens == 8
    request.begin_decode(worker_pb2.RequestTimings(cached_tokens=9), ARRIVAL_S)
    assert request.cached_tokens == 9


def test_a_prompt_that_stays_is_not_handed_over(make: Make) -> None:
    request = make(placement=replace(PLACEMENT, prefill_worker_id="d1"))
    request.end_prefill(ARRIVAL_S + 2.0)
    assert request.clock.phase is Phase.DECODE


def test_a_recompute_is_counted(make: Make) -> None:
    request = make()
    request.begin_decode(worker_pb2.RequestTimings(kv_recompute_reason="lease over"), ARRIVAL_S + 1.0)
    assert (request.kv_recomputes, request.kv_pull) == (1, None)


def test_the_room_of_best_effort_is_for_its_prompt(make: Make) -> None:
    request = make(contract(), guaranteed=False)
    request.give_room(ELSEWHERE)
    request.end_prefill(ARRIVAL_S + 2.0)
    assert not request.planned


def test_another_attempt_begins_where_the_output_stands(make: Make) -> None:
    request = make()
    request.submit_prompt("p1", 0, ARRIVAL_S)
    request.advance_prefill(8)
    request.take_tokens(letters("ab"), ARRIVAL_S + 0.5)
    request.count_restart()
    request.start_again(ARRIVAL_S + 2.0)
    assert (request.attempt, request.restarts, request.prefilled_tokens) == (1, 1, 0)
    assert request.generated == [LETTER_A, LETTER_A + 1]
    assert request.clock.phase is Phase.RESTART
    assert request.rank_s == pytest.approx(ARRIVAL_S + 0.5 + 2 * 0.1), "its next token is overdue"
    request.submit_prompt("p2", 0, ARRIVAL_S + 2.5)
    request.begin_prefill(0, ARRIVAL_S + 2.6, ARRIVAL_S + 2.7)
    assert request.clock.phase is Phase.RESTART, "all of that is time lost to the restart"


@pytest.mark.parametrize("wanted", [contract(ttft_s=9.0), contract()])
def test_what_starts_again_is_due_now_unless_it_was_due_before(make: Make, wanted: Contract) -> None:
    request = make(wanted)
    request.start_again(ARRIVAL_S + 2.0)
    assert request.rank_s == ARRIVAL_S + 2.0


def test_room_that_was_given_is_lost_with_the_attempt(make: Make) -> None:
    request = make(contract(), guaranteed=False)
    request.give_room(ELSEWHERE)
    request.start_again(ARRIVAL_S + 2.0)
    assert not request.planned


async def test_tokens_become_text_with_their_position(make: Make) -> None:
    request = make()
    assert request.take_tokens(letters("ab"), ARRIVAL_S + 0.5) == ""
    first = await chunk(request)
    request.take_tokens(letters("c"), ARRIVAL_S + 0.6)
    second = await chunk(request)
    assert (first.index, first.text, second.index, second.text) == (0, "ab", 2, "c")
    assert request.context_tokens == 13
    assert request.meter.attainment().ttft_s == 0.5
    assert len(first.logprobs) == 0


def test_an_output_without_tokens_delivers_nothing(make: Make) -> None:
    request = make()
    request.take_tokens(letters(""), ARRIVAL_S + 0.5)
    assert request.meter.attainment().ttft_s is None


async def test_a_stop_string_ends_the_output_at_its_last_token(make: Make) -> None:
    request = make(stop=("cd",), logprobs=1)
    assert request.take_tokens(letters("abc", logprobs=3), ARRIVAL_S + 0.5) == ""
    assert request.take_tokens(letters("def", logprobs=3), ARRIVAL_S + 0.6) == "cd"
    assert len(request.generated) == 4, "what the engine made after the stop string is not taken"
    delivered = await chunk(request)
    assert (delivered.text, len(delivered.token_ids), len(delivered.logprobs)) == ("ab", 4, 4)


def test_a_stop_string_counts_from_the_least_number_of_tokens_on(make: Make) -> None:
    request = make(stop=("b",), min_tokens=3)
    assert request.take_tokens(letters("ab"), ARRIVAL_S + 0.5) == ""
    assert request.take_tokens(letters("b"), ARRIVAL_S + 0.6) == "b"


async def test_what_was_held_back_is_delivered_at_the_end(make: Make) -> None:
    request = make(stop=("xyz",))
    request.take_tokens(letters("axy"), ARRIVAL_S + 0.5)
    assert (await chunk(request)).text == "a"
    assert request.complete(ARRIVAL_S + 0.6, text_complete=False) == ""
    rest = await chunk(request)
    assert (rest.text, len(rest.token_ids), rest.index) == ("xy", 0, 3)


def test_nothing_is_delivered_after_a_stop_string(make: Make) -> None:
    request = make(stop=("xyz",))
    request.take_tokens(letters("axy"), ARRIVAL_S + 0.5)
    request.complete(ARRIVAL_S + 0.6, text_complete=True)
    assert request.output_buffer._text == "a"


def test_the_end_of_a_task_is_met_or_missed(make: Make) -> None:
    request = make()
    request.meter.task_due_s = ARRIVAL_S + 1.0
    request.complete(ARRIVAL_S + 1.5, text_complete=True)
    assert request.meter.missed


def test_a_marker_ends_a_stage_wherever_it_is_cut(make: Make) -> None:
    wanted = Contract(PrefillTarget(ttft_s=1.0), (DecodeTarget(1.0, ends_with="yz"), DecodeTarget(0.1)))
    request = make(wanted)
    for number, text in enumerate(("ay", "za", "yz")):
        request.take_tokens(letters(text), ARRIVAL_S + 0.5 + number)
    stages = request.meter.attainment().stages
    assert [stage.tokens for stage in stages] == [2, 3], "`z` ends the first stage; a marker that comes again is text"
    assert stages[1].began_s == ARRIVAL_S + 1.5


def test_a_marker_is_not_found_again_in_the_stage_that_it_ended(make: Make) -> None:
    stages = (DecodeTarget(1.0, ends_with="yz"), DecodeTarget(0.5, ends_with="yz"), DecodeTarget(0.1))
    request = make(Contract(PrefillTarget(ttft_s=1.0), stages))
    for number, text in enumerate(("ay", "z", "z", "b")):
        request.take_tokens(letters(text), ARRIVAL_S + 0.5 + number)
    assert [stage.tokens for stage in request.meter.attainment().stages] == [2, 2]


def test_a_lease_runs_out(make: Make) -> None:
    request = make()
    handle = KvHandle("l", "p1", "1", 30.0, 10, 1000, FACTS.compatibility, "{}", "secret")
    lease = HeldLease(handle, ARRIVAL_S)
    request.hold(lease)
    assert lease.remaining_s(ARRIVAL_S + 31.0) == -1.0
    assert request.drop_lease() is lease
    assert (request.lease, request.drop_lease()) == (None, None)


def test_a_smaller_hit_of_the_decode_worker_does_not_replace_that_of_the_prefill_worker(make: Make) -> None:
    request = make()
    request.begin_prefill(8, ARRIVAL_S, ARRIVAL_S)
    request.begin_decode(worker_pb2.RequestTimings(cached_tokens=3), ARRIVAL_S)
    assert request.cached_tokens == 8


def test_a_request_begins_with_nothing_done(make: Make) -> None:
    request = make()
    assert (request.state, request.attempt, request.restarts, request.kv_recomputes) == (RequestState.QUEUED, 0, 0, 0)
    assert (request.prefilled_tokens, request.believed_cached_tokens, request.cached_tokens) == (0, 0, 0)
    assert (request.prefill_worker_id, request.worker_id, request.submitted_s) == ("", "", 0.0)
    assert (request.generated, request.lease, request.kv_pull) == ([], None, None)
