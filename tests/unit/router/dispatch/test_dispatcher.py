"""Requests go from worker to worker, and again when a worker is lost or says no."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from router.requests.phases import Phase
from services.rpc.errors import InvalidRequestError, NoWorkerError, WorkerLostError
from services.slo.admission import DEFAULT_OPTIONS
from services.slo.admission.handover_learning import LEARN_HANDOVERS_EVERY_S
from services.state.journal_entry import RequestState
from slos_serve.v1 import sampling_pb2, worker_pb2
from tests.support.audit_log import AuditLog
from tests.unit.router.dispatch.dispatch_bench import (
    GOES_ON,
    LENGTH,
    LETTER_A,
    PATIENCE_S,
    STOP,
    DispatchBench,
    output,
    placement,
    read,
    timings,
)
from tests.unit.router.router_support import FACTS, contract


async def test_a_request_is_prefilled_handed_over_and_decoded(bench: DispatchBench) -> None:
    request = bench.accept(bench.request(max_tokens=3))
    (prefill,) = bench.sent("p1")
    assert (prefill.submit.request_id, prefill.submit.attempt, prefill.submit.export_kv) == ("r", 0, True)
    bench.now_s += 0.2
    bench.step("p1", bench.first_output(request))
    (decode,) = bench.sent("d1")
    assert decode.submit.kv_source.lease_id == "r-0"
    assert list(decode.submit.token_ids) == [*request.parsed.prompt, 70]
    bench.now_s += 0.05
    bench.step("d1", output(request, 71, timings=timings(kv_bytes=100_000)))
    bench.step("d1", output(request, 72, finish=LENGTH))
    assert bench.account.states_of(request) == [
        RequestState.QUEUED,
        RequestState.PREFILLING,
        RequestState.HANDOVER,
        RequestState.DECODING,
        RequestState.DONE,
    ]
    chunk, finished = await read(request)
    assert list(chunk.token_ids) == [70, 71, 72]
    assert not isinstance(finished, Exception)
    assert (finished.reason, finished.completion_tokens, finished.achieved.kept) == (LENGTH, 3, True)
    assert bench.account.delivered["r"] == 3
    assert (bench.counters.received, bench.counters.finished, bench.counters.kept) == (1, 1, 1)
    assert len(bench.requests) == 0
    assert bench.life.idle.is_set()


def test_a_prompt_that_ends_with_its_first_token_exports_no_kv_cache(bench: DispatchBench) -> None:
    request = bench.accept(bench.request(max_tokens=1))
    (prefill,) = bench.sent("p1")
    assert not prefill.submit.export_kv
    bench.step("p1", output(request, 70, finish=LENGTH, timings=timings()))
    assert request.state is RequestState.DONE
    assert bench.sent("d1") == []


def test_a_prompt_that_stays_on_its_worker_exports_no_kv_cache(bench: DispatchBench) -> None:
    request = bench.accept(bench.request(where=placement("d1", "d1")))
    (prefill,) = bench.sent("d1")
    assert not prefill.submit.export_kv
    bench.step("d1", output(request, 70, timings=timings()))
    assert (request.state, request.worker_id) == (RequestState.DECODING, "d1")
    assert request.clock.phase is Phase.DECODE


async def test_the_end_of_the_output_at_its_first_token_is_no_hand_over(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.step("p1", output(request, 2, finish=STOP, timings=timings(), stop_token_id=2))
    assert request.state is RequestState.DONE
    _, finished = await read(request)
    assert not isinstance(finished, Exception)
    assert (finished.reason, finished.matched_stop) == (STOP, "2")
    assert bench.sent("d1") == []


@pytest.mark.parametrize(("reason", "told"), [(GOES_ON, ["abort"]), (LENGTH, [])])
async def test_a_stop_string_ends_a_stream_and_stops_its_engine(
    bench: DispatchBench, reason: sampling_pb2.FinishReason.ValueType, told: list[str]
) -> None:
    request = bench.decoding(bench.request(stop=("ab",)))
    bench.close_lease("p1", "r-0", worker_pb2.LEASE_OUTCOME_PULLED)
    bench.step("d1", output(request, LETTER_A, LETTER_A + 1, LETTER_A + 2, finish=reason))
    assert bench.kinds("d1") == told, "an engine that has finished by itself has nothing to stop"
    chunk, finished = await read(request)
    assert not isinstance(finished, Exception)
    assert (finished.reason, finished.matched_stop, finished.completion_tokens) == (STOP, "ab", 4)
    assert "a" not in chunk.text


async def test_a_stop_string_in_what_was_held_back_is_the_reason_of_the_end(bench: DispatchBench) -> None:
    request = bench.decoding(bench.request(stop=("a\N{REPLACEMENT CHARACTER}",)))
    half_a_character = 17 + sorted(ByteLevel.alphabet()).index("\N{LATIN CAPITAL LETTER A WITH TILDE}")
    bench.step("d1", output(request, LETTER_A, half_a_character, finish=LENGTH))
    _, finished = await read(request)
    assert not isinstance(finished, Exception)
    assert (finished.reason, finished.matched_stop) == (STOP, "a\N{REPLACEMENT CHARACTER}")


def test_phases_begin_when_engines_say(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.now_s += 0.2
    bench.step("p1", bench.first_output(request))
    bench.now_s += 0.3
    bench.step("d1", output(request, 71, timings=timings(wait_s=0.25, kv_bytes=1)))
    spent_s = request.clock.spent_s(bench.now_s)
    found = [spent_s[phase] for phase in (Phase.PREFILL_WAIT, Phase.PREFILL, Phase.HANDOVER, Phase.DECODE)]
    assert found == pytest.approx([0.01, 0.19, 0.25, 0.05])


def test_the_contexts_on_a_worker_grow_with_every_token(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.step("d1", output(request, 71, 72, timings=timings(kv_bytes=1)))
    assert bench.core.requests.decoding_tokens("d1") == request.context_tokens == 103
    bench.step("d1", output(request, 73, 74))
    assert bench.core.requests.decoding_tokens("d1") == request.context_tokens == 105


def test_no_prompt_overtakes_one_that_waits_for_memory_on_its_decode_worker(bench: DispatchBench) -> None:
    bench.connect("d1", replace(FACTS, kv_blocks_total=20))
    bench.handed_over(bench.request("first", 150))
    large = bench.accept(bench.request("large", 150))
    small = bench.accept(bench.request("small", 10, where=placement(due_s=bench.now_s + 9.0)))
    bench.step("p1")
    assert (large.state, small.state) == (RequestState.QUEUED, RequestState.QUEUED)


def test_the_progress_of_a_prompt_is_noted_and_is_no_output(bench: DispatchBench) -> None:
    request = bench.accept(bench.request(prompt_tokens=600))
    bench.step("p1", worker_pb2.RequestOutput(request_id="r", attempt=0, prefilled_tokens=256))
    assert request.prefilled_tokens == 256
    assert request.state is RequestState.PREFILLING
    assert "r" not in bench.account.delivered


def test_output_of_an_earlier_attempt_is_dropped_and_its_kv_cache_freed(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    stale = bench.first_output(request)
    bench.fail("p1", request, worker_pb2.FAILURE_KIND_ENGINE)
    assert (request.state, request.attempt) == (RequestState.PREFILLING, 1)
    bench.sent("p1")
    bench.step("p1", stale)
    assert request.generated == []
    assert request.state is RequestState.PREFILLING
    (release,) = bench.sent("p1")
    assert release.release_kv.lease_id == "r-0"


def test_output_of_a_worker_that_has_the_request_no_longer_is_dropped(bench: DispatchBench) -> None:
    bench.connect("p2")
    request = bench.accept(bench.request())
    bench.sent("p2")
    bench.step("p2", bench.first_output(request))
    assert request.generated == []
    assert bench.kinds("p2") == ["release_kv"]


def test_output_of_an_unknown_request_is_dropped_and_its_kv_cache_freed(bench: DispatchBench) -> None:
    request = bench.request("stranger")
    bench.step("p1", bench.first_output(request))
    assert bench.kinds("p1") == ["release_kv"]


@pytest.mark.parametrize(
    "changes",
    [
        {"worker_id": "p2"},
        {"engine_epoch": "2"},
        {"transfer_params_json": '{"host": "198.51.100.7", "port": 80}'},
        {"transfer_params_json": ""},
    ],
)
def test_a_handle_that_sends_the_decode_worker_elsewhere_is_not_passed_on(
    bench: DispatchBench, changes: dict[str, str], caplog: pytest.LogCaptureFixture, audit_log: AuditLog
) -> None:
    request = bench.accept(bench.request())
    bench.sent("p1")
    first = bench.first_output(request)
    for name, value in changes.items():
        setattr(first.kv, name, value)
    bench.step("p1", first)
    assert request.state is RequestState.HANDOVER
    (submit,) = bench.sent("d1")
    assert submit.submit.request_id == "r"
    assert not submit.submit.HasField("kv_source")
    (release,) = bench.sent("p1")
    assert release.release_kv.lease_id == "r-0"
    assert "the KV handle of worker p1 is not used" in caplog.text
    assert audit_log.told() == [("lease", "refused", "p1")]


def test_the_secret_of_a_lease_goes_to_the_decode_worker_and_into_no_log(
    bench: DispatchBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    request = bench.handed_over(bench.request())
    (submit,) = bench.sent("d1")
    assert submit.submit.kv_source.secret == "canary"
    assert all("canary" not in str(command) for command in bench.sent("p1"))
    assert "canary" not in repr(request) + caplog.text


def test_a_prompt_waits_while_its_decode_worker_has_no_room(bench: DispatchBench) -> None:
    for worker_id in ("p1", "d1"):
        bench.connect(worker_id, replace(FACTS, max_running_requests=1))
        bench.sent(worker_id)
    first = bench.handed_over(bench.request("first"))
    second = bench.accept(bench.request("second"))
    assert second.state is RequestState.QUEUED
    bench.step("d1", output(first, 71, finish=STOP, timings=timings(kv_bytes=1)))
    assert (first.state, second.worker_id) == (RequestState.DONE, "p1")


def test_a_prompt_without_room_does_not_stand_before_one_for_another_worker(bench: DispatchBench) -> None:
    bench.connect("d1", replace(FACTS, max_running_requests=1))
    bench.connect("d2")
    bench.handed_over(bench.request("first"))
    blocked = bench.accept(bench.request("blocked"))
    other = bench.accept(bench.request("other", where=placement("p1", "d2")))
    assert (blocked.state, other.state) == (RequestState.QUEUED, RequestState.PREFILLING)


def test_prompts_go_out_by_due_time_and_those_in_the_plan_first(bench: DispatchBench) -> None:
    waiting = [
        bench.request("late", where=placement("p2", due_s=bench.now_s + 3)),
        bench.request("unplanned", where=placement("p2", due_s=bench.now_s + 1), guaranteed=False),
        bench.request("early", where=placement("p2", due_s=bench.now_s + 2)),
    ]
    for request in waiting:
        bench.accept(request)
    bench.planning.answer = placement("p1")
    assert all(request.state is RequestState.QUEUED for request in waiting)
    bench.connect("p2")
    submitted = [command.submit.request_id for command in bench.sent("p2")]
    assert submitted == ["early", "late", "unplanned"]


def test_a_prompt_for_an_idle_worker_tells_when_its_step_begins(bench: DispatchBench) -> None:
    bench.accept(bench.request("first"))
    view = bench.cluster.workers["p1"]
    assert view.state.step_began_s == bench.now_s + DEFAULT_OPTIONS.submission_s
    bench.now_s += 0.1
    bench.accept(bench.request("second"))
    assert view.state.step_began_s == bench.now_s - 0.1 + DEFAULT_OPTIONS.submission_s, "the worker was at work already"


def test_a_prompt_for_a_worker_that_is_at_work_joins_a_later_step(bench: DispatchBench) -> None:
    bench.step("p1", running=3)
    began_s = bench.now_s
    bench.now_s += 0.1
    bench.accept(bench.request())
    assert bench.cluster.workers["p1"].state.step_began_s == began_s


def test_a_worker_is_told_how_much_memory_a_request_is_promised(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    promised = bench.core.promised_kv_tokens(request)
    assert promised > request.context_tokens
    bench.step("p1", bench.first_output(request))
    (prefill,), (decode,) = bench.sent("p1"), bench.sent("d1")
    assert (prefill.submit.promised_tokens, decode.submit.promised_tokens) == (
        promised,
        bench.core.promised_kv_tokens(request),
    )


@pytest.mark.parametrize(
    ("cached_tokens", "lost", "blamed"),
    [(0, False, Phase.PLAN), (1500, False, Phase.PREFILL), (0, True, Phase.PREFILL)],
)
def test_a_late_first_token_is_blamed_on_what_an_idle_worker_would_not_need(
    bench: DispatchBench, cached_tokens: int, lost: bool, blamed: Phase
) -> None:
    """Planning took 0.1 s and the prefill 0.24 s, of which an idle worker needs 0.21 s without a cache."""
    request = bench.accept(bench.request(prompt_tokens=2000, wanted=contract(ttft_s=0.3)))
    bench.now_s += 0.25
    first = bench.first_output(request)
    first.timings.cached_tokens = cached_tokens
    bench.step("p1", first)
    if lost:
        bench.lose("p1")
    bench.dispatcher.cancel("r")
    assert bench.account.ended[0].broken_by is blamed


def test_only_outputs_that_ended_by_themselves_are_learnt_as_whole(
    bench: DispatchBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[tuple[int, bool]] = []

    def observe(_tenant: str, _application: str, tokens: int, *, complete: bool) -> None:
        learnt.append((tokens, complete))

    monkeypatch.setattr(bench.core.memory.lengths, "observe", observe)
    bench.step("d1", output(bench.decoding(bench.request("stopped")), 2, finish=STOP))
    bench.step("d1", output(bench.decoding(bench.request("cut off", max_tokens=3)), 72, finish=LENGTH))
    bench.decoding(bench.request("cancelled"))
    bench.dispatcher.cancel("cancelled")
    assert learnt == [(3, True), (3, False), (2, False)]


def test_what_a_worker_has_cached_is_believed_until_it_reports_otherwise(bench: DispatchBench) -> None:
    believed = []
    for index, cached_tokens in enumerate((0, 96, 0, 0)):
        request = bench.accept(bench.request(f"r{index}", max_tokens=1))
        assert request.prefilled_tokens == request.believed_cached_tokens
        believed.append(request.believed_cached_tokens)
        bench.step("p1", output(request, 70, finish=LENGTH, timings=timings(cached_tokens=cached_tokens)))
        assert request.cached_tokens == cached_tokens
    assert believed == [0, 0, 96, 0], "a hit is believed, of whole blocks of 16 tokens; a miss is believed as well"


def test_a_request_without_a_decode_worker_goes_back_to_the_queue(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.lose("d1")
    assert request.state is RequestState.PREFILLING
    bench.step("p1", bench.first_output(request))
    assert (request.state, request.attempt, request.restarts) == (RequestState.QUEUED, 1, 0)
    assert bench.kinds("p1") == ["submit", "release_kv"]
    assert request.generated == [70], "the client has this token"


def test_a_hand_over_finds_another_decode_worker(bench: DispatchBench) -> None:
    bench.connect("d2")
    request = bench.accept(bench.request())
    bench.lose("d1")
    bench.planning.answer = placement("p1", "d2")
    bench.sent("d2")
    bench.step("p1", bench.first_output(request))
    (decode,) = bench.sent("d2")
    assert decode.submit.kv_source.lease_id == "r-0"
    assert (request.state, request.worker_id) == (RequestState.HANDOVER, "d2")
    assert request.promised.decode_worker_id == "d1", "the client's verdict stands"


def test_the_requests_of_a_lost_worker_start_again_where_there_is_one(bench: DispatchBench) -> None:
    request = bench.decoding(bench.request())
    bench.connect("d2")
    bench.planning.answer = placement("p1", "d2")
    bench.sent("p1")
    bench.now_s += 0.3
    bench.lose("d1")
    release, again = bench.sent("p1")
    assert release.release_kv.lease_id == "r-0"
    assert again.submit.attempt == 1
    assert list(again.submit.token_ids) == [*request.parsed.prompt, 70, 71]
    assert again.submit.generated_tokens == 2
    assert (request.state, request.restarts, request.decode_worker_id) == (RequestState.PREFILLING, 1, "d2")
    assert "d1" not in bench.core.cluster.workers
    assert (bench.counters.workers_lost, bench.counters.restarts) == (1, 1)
    assert request.clock.phase is Phase.RESTART


def test_a_request_that_starts_again_for_its_last_token_exports_no_kv_cache(bench: DispatchBench) -> None:
    bench.decoding(bench.request(max_tokens=3))
    bench.connect("d2")
    bench.planning.answer = placement("p1", "d2")
    bench.lose("d1")
    (again,) = [command for command in bench.sent("p1") if command.HasField("submit")]
    assert not again.submit.export_kv


def test_requests_elsewhere_do_not_mind_a_lost_worker(bench: DispatchBench) -> None:
    bench.connect("d2")
    request = bench.decoding(bench.request())
    bench.lose("d2")
    assert (request.state, request.attempt) == (RequestState.DECODING, 0)


def test_a_worker_that_drained_was_not_lost(bench: DispatchBench) -> None:
    bench.tell("d1", worker_pb2.SessionResponse(draining=worker_pb2.Draining()))
    assert not bench.cluster.usable("d1")
    bench.lose("d1")
    assert bench.counters.workers_lost == 0
    assert "d1" not in bench.cluster.workers
    assert "d1" not in bench.core.cluster.workers


def test_a_link_that_was_replaced_says_nothing_any_more(bench: DispatchBench) -> None:
    old = bench._sessions["p1"]
    bench.connect("p1")
    bench.dispatcher.lost(old, "closed")
    assert "p1" in bench.cluster.workers
    draining = worker_pb2.SessionResponse(draining=worker_pb2.Draining())
    bench.dispatcher.event(old, draining)
    assert bench.cluster.usable("p1")


def test_a_worker_that_is_back_before_its_former_session_broke_is_given_its_requests_anew(bench: DispatchBench) -> None:
    stream, prompt = bench.decoding(bench.request("stream")), bench.accept(bench.request("prompt"))
    bench.planning.answer = placement()
    former = bench._sessions["d1"]
    bench.sent("p1")
    bench.connect("d1", replace(FACTS, engine_epoch="another"))
    _release, again = bench.sent("p1")
    assert (again.submit.request_id, again.submit.attempt, again.submit.generated_tokens) == ("stream", 1, 2)
    assert (stream.state, stream.restarts) == (RequestState.PREFILLING, 1)
    assert (prompt.state, prompt.restarts) == (RequestState.PREFILLING, 0), "its prefill worker is still there"
    assert (bench.counters.workers_lost, bench.counters.restarts) == (1, 1)
    bench.dispatcher.lost(former, "connection reset")
    assert (bench.counters.workers_lost, bench.counters.restarts) == (1, 1), "the former session was lost before"
    assert bench.cluster.usable("d1")
    bench.step("p1", bench.first_output(stream))
    assert [command.submit.kv_source.lease_id for command in bench.sent("d1")] == ["stream-1"]


def test_a_draining_worker_gets_nothing_new(bench: DispatchBench) -> None:
    bench.connect("p2")
    bench.planning.answer = placement("p2")
    bench.tell("p1", worker_pb2.SessionResponse(draining=worker_pb2.Draining()))
    request = bench.accept(bench.request())
    assert request.state is RequestState.QUEUED
    bench.dispatcher.pump()
    assert (request.state, request.worker_id) == (RequestState.PREFILLING, "p2")


def test_what_waits_for_a_worker_that_begins_to_drain_goes_elsewhere_at_once(bench: DispatchBench) -> None:
    bench.connect("d1", replace(FACTS, max_running_requests=1))
    bench.connect("d2")
    bench.handed_over(bench.request("first"))
    waiting = bench.accept(bench.request("waiting"))
    bench.planning.answer = placement("p1", "d2")
    bench.tell("d1", worker_pb2.SessionResponse(draining=worker_pb2.Draining()))
    assert (waiting.decode_worker_id, waiting.worker_id) == ("d2", "p1")


def test_a_request_that_a_draining_worker_does_not_take_has_used_no_restart(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.tell("p1", worker_pb2.SessionResponse(draining=worker_pb2.Draining()))
    bench.fail("p1", request, worker_pb2.FAILURE_KIND_NOT_ACCEPTING)
    assert (request.state, request.attempt, request.restarts) == (RequestState.QUEUED, 1, 0)


def test_a_worker_that_is_full_uses_up_a_restart(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.fail("p1", request, worker_pb2.FAILURE_KIND_NOT_ACCEPTING)
    assert (request.state, request.attempt, request.restarts) == (RequestState.PREFILLING, 1, 1)


async def test_what_a_worker_calls_invalid_fails_at_once(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.fail("p1", request, worker_pb2.FAILURE_KIND_INVALID)
    assert request.state is RequestState.FAILED
    _, error = await read(request)
    assert isinstance(error, InvalidRequestError)
    assert bench.counters.failed == 1


def test_a_failure_of_an_earlier_attempt_is_not_heard(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.fail("p1", request, worker_pb2.FAILURE_KIND_ENGINE)
    failed = worker_pb2.RequestFailed(request_id="r", attempt=0, kind=worker_pb2.FAILURE_KIND_INVALID)
    bench.tell("p1", worker_pb2.SessionResponse(request_failed=failed))
    assert (request.state, request.attempt) == (RequestState.PREFILLING, 1)


@pytest.mark.parametrize("reason", [sampling_pb2.FINISH_REASON_ABORT, sampling_pb2.FINISH_REASON_ERROR])
def test_a_stream_that_its_engine_gave_up_starts_again(
    bench: DispatchBench, reason: sampling_pb2.FinishReason.ValueType
) -> None:
    request = bench.decoding(bench.request())
    bench.step("d1", output(request, finish=reason))
    assert (request.state, request.attempt, request.restarts) == (RequestState.PREFILLING, 1, 1)


async def test_a_request_is_given_up_after_so_many_restarts(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    for expected in (1, 2):
        bench.fail("p1", request, worker_pb2.FAILURE_KIND_ENGINE)
        assert (request.state, request.attempt) == (RequestState.PREFILLING, expected)
    bench.fail("p1", request, worker_pb2.FAILURE_KIND_ENGINE)
    assert request.state is RequestState.FAILED
    _, error = await read(request)
    assert isinstance(error, WorkerLostError)
    assert str(error) == "gave up after 3 restarts", "clients are not told which worker, or where it is"
    assert (bench.counters.failed, bench.counters.restarts) == (1, 3)


async def test_queued_requests_fail_once_there_was_no_worker_for_too_long(bench: DispatchBench) -> None:
    bench.lose("d1")
    request = bench.accept(bench.request())
    bench.dispatcher.tick()
    bench.now_s += PATIENCE_S
    bench.dispatcher.tick()
    assert request.state is RequestState.QUEUED
    bench.now_s += 0.1
    bench.dispatcher.tick()
    _, error = await read(request)
    assert isinstance(error, NoWorkerError)
    assert str(error) == "no decode worker is connected"
    assert error.retry_after_s == 1.0, "a client asks again, at a pace that costs nothing"


def test_patience_begins_again_whenever_there_was_a_worker(bench: DispatchBench) -> None:
    bench.dispatcher.tick()
    bench.lose("d1")
    request = bench.accept(bench.request())
    bench.now_s += 2 * PATIENCE_S
    bench.dispatcher.tick()
    assert request.state is RequestState.QUEUED, "this is the first moment at which no worker was seen"


def test_a_request_whose_worker_is_gone_is_placed_again_once_there_is_another(bench: DispatchBench) -> None:
    bench.lose("p1")
    request = bench.accept(bench.request())
    bench.dispatcher.pump()
    assert (request.state, bench.planning.asked) == (RequestState.QUEUED, ["r"])
    bench.planning.answer = placement("p2", "d1")
    bench.connect("p2")
    assert (request.state, request.worker_id) == (RequestState.PREFILLING, "p2")


def test_a_request_that_fits_no_worker_that_is_left_fails(bench: DispatchBench) -> None:
    bench.lose("p1")
    request = bench.accept(bench.request())
    bench.planning.answer = InvalidRequestError("no worker has so much memory")
    bench.dispatcher.pump()
    assert request.state is RequestState.FAILED


def test_a_request_that_is_placed_well_is_not_placed_again(bench: DispatchBench) -> None:
    for worker_id in ("p1", "d1"):
        bench.connect(worker_id, replace(FACTS, max_running_requests=1))
    bench.handed_over(bench.request("first"))
    bench.accept(bench.request("second"))
    bench.planning.answer = placement("p1", "d2")
    bench.dispatcher.pump()
    assert bench.planning.asked == []


def test_whoever_plans_is_told_of_every_change_on_a_worker(bench: DispatchBench) -> None:
    told = bench.planning.changes
    bench.step("p1")
    bench.tell("p1", worker_pb2.SessionResponse(load=worker_pb2.WorkerLoad(kv_blocks_total=7)))
    assert bench.planning.changes == told + 2
    assert bench.cluster.workers["p1"].load.kv_blocks_total == 7


def test_whoever_plans_is_told_of_a_worker_that_is_gone(bench: DispatchBench) -> None:
    told = bench.planning.changes
    bench.lose("p1")
    assert bench.planning.changes == told + 1
    assert "p1" not in bench.cluster.workers


def test_best_effort_that_waits_is_given_room_in_the_plan(bench: DispatchBench) -> None:
    waiting = bench.request("waiting", 3000, wanted=contract(), guaranteed=False)
    bench.accept(bench.request("running", 2000, wanted=contract(), guaranteed=False))
    bench.accept(waiting)
    assert waiting.state is RequestState.QUEUED, "more than a step's worth is there"
    bench.queue.give_room(waiting, placement(due_s=bench.now_s + 30.0))
    assert (waiting.state, waiting.planned, waiting.guaranteed) == (RequestState.PREFILLING, True, False)
    assert waiting.rank_s == bench.now_s + 30.0
    (submitted,) = [command for command in bench.sent("p1") if command.submit.request_id == "waiting"]
    assert not submitted.submit.best_effort
    bench.step("p1", bench.first_output(waiting))
    assert not waiting.planned, "the room was for its prompt"


def test_best_effort_follows_as_soon_as_a_step_leaves_room(bench: DispatchBench) -> None:
    running = bench.accept(bench.request("running", 2000, wanted=contract(), guaranteed=False))
    waiting = bench.accept(bench.request("waiting", 1000, wanted=contract(), guaranteed=False))
    progress = worker_pb2.RequestOutput(request_id="running", attempt=running.attempt, prefilled_tokens=500)
    bench.step("p1", progress)
    assert waiting.worker_id == "", "1500 tokens are left, and 2048 fit a step"
    progress.prefilled_tokens = 1000
    bench.step("p1", progress)
    assert waiting.worker_id == "p1"


def test_room_for_a_request_that_is_no_longer_queued_is_not_taken(bench: DispatchBench) -> None:
    request = bench.accept(bench.request(guaranteed=False, wanted=contract()))
    assert request.state is RequestState.PREFILLING
    bench.queue.give_room(request, placement("p1", "d2"))
    assert (request.planned, request.decode_worker_id) == (False, "d1")


def test_a_hand_over_that_succeeded_is_learnt_from(bench: DispatchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []

    def observe(*figures: object, busy: bool) -> None:
        seen.append((*figures, busy))

    monkeypatch.setattr(bench.handovers, "observe", observe)
    first, second, third = (bench.handed_over(bench.request(f"r{index}")) for index in range(3))
    bench.step("d1", output(first, 71, timings=timings(wait_s=0.5, kv_bytes=100_000)))
    assert first.kv_pull is not None
    assert first.kv_pull.bytes == 100_000
    bench.now_s += 0.6 * LEARN_HANDOVERS_EVERY_S
    bench.step("d1", output(second, 71, timings=timings(wait_s=0.5, kv_bytes=100_000)))
    bench.now_s += 0.6 * LEARN_HANDOVERS_EVERY_S
    bench.step("d1", output(third, 71, timings=timings(wait_s=0.25, kv_bytes=300_000)))
    alone, beside_two = seen
    assert alone == ("p1", "d1", 100_000, 0.005, 0.5, pytest.approx(0.0101), False)
    contexts = 102 + 102 + 101
    step_s = bench.cluster.workers["d1"].state.model.decode_step_s(3, contexts)
    assert beside_two == ("p1", "d1", 300_000, 0.005, 0.25, pytest.approx(step_s), True)


def test_a_kv_cache_that_was_computed_again_is_counted_and_given_up(bench: DispatchBench) -> None:
    request = bench.handed_over(bench.request())
    bench.sent("p1")
    bench.step("d1", output(request, 71, timings=timings(recomputed="the lease is over")))
    assert (request.kv_recomputes, bench.counters.kv_recomputes) == (1, 1)
    (release,) = bench.sent("p1")
    assert release.release_kv.lease_id == "r-0"
    assert request.lease is None
    assert request.state is RequestState.DECODING


def test_a_lease_runs_from_the_moment_its_handle_came(bench: DispatchBench) -> None:
    request = bench.accept(bench.request())
    bench.now_s += 0.25
    bench.step("p1", bench.first_output(request))
    assert request.lease is not None
    assert request.lease.remaining_s(bench.now_s + 10.0) == pytest.approx(20.0)
    (decode,) = bench.sent("d1")
    assert decode.submit.kv_source.lease_remaining_s == pytest.approx(30.0)
