"""What a worker notes of a request, and the spans that are built from it."""

from __future__ import annotations

from services.engine.kv.handle import KvPull
from services.engine.protocol import RequestOutput, RequestTimings
from services.state.registry import WorkerRole
from services.worker import spans
from services.worker.ledger import LedgerEntry, RequestLedger

ARRIVED_S = 5_000.0


def entry(*outputs: tuple[float, RequestOutput]) -> LedgerEntry:
    found = LedgerEntry("engine's", "router#1", "r", attempt=2, prompt_tokens=30, arrived_s=ARRIVED_S)
    for now_s, output in outputs:
        found.note(output, ARRIVED_S + now_s)
    return found


def output(tokens: int, timings: RequestTimings | None = None) -> RequestOutput:
    return RequestOutput("engine's", tuple(range(tokens)), timings=timings)


def test_an_entry_notes_first_and_last_tokens_and_the_first_timings() -> None:
    timings = RequestTimings(wait_s=0.1, run_s=0.2)
    found = entry((0.2, output(0, timings)), (0.3, output(1)), (0.5, output(3)), (0.9, output(0)))
    assert (found.first_s, found.last_s, found.tokens) == (ARRIVED_S + 0.3, ARRIVED_S + 0.5, 4)
    assert found.timings is timings


def test_a_ledger_knows_each_attempt_of_each_session_apart() -> None:
    ledger = RequestLedger()
    entries = [
        LedgerEntry(RequestLedger.engine_request_id(owner, "r", attempt), owner, "r", attempt)
        for owner in ("a#1", "b#2")
        for attempt in (0, 1)
    ]
    for one in entries:
        ledger.open(one)
    assert len(ledger) == 4
    assert ledger.owned_by("a#1") == entries[:2]
    ledger.close(entries[0].engine_request_id)
    ledger.close(entries[0].engine_request_id)
    assert ledger.find(entries[0].engine_request_id) is None
    assert ledger.owned_by("a#1") == entries[1:2]
    assert ledger.find(entries[3].engine_request_id) is entries[3]


def told(found: LedgerEntry) -> list[tuple[str, float, float]]:
    return [
        (part.name, round(part.began_s - ARRIVED_S, 6), round(part.ended_s - ARRIVED_S, 6))
        for part in spans.parts(found)
    ]


def test_a_prompt_that_was_computed_here_waited_ran_and_decoded() -> None:
    timings = RequestTimings(wait_s=0.2, run_s=0.3, cached_tokens=16, kv_recompute_reason="expired")
    found = entry((0.5, output(1, timings)), (0.9, output(2)))
    assert told(found) == [("engine.wait", 0.0, 0.2), ("engine.prefill", 0.2, 0.5), ("engine.decode", 0.5, 0.9)]
    prefill = spans.parts(found)[1]
    assert prefill.attributes == {spans.CACHED_TOKENS: 16, "slos.kv.recompute_reason": "expired"}


def test_a_single_token_of_a_prompt_is_no_decoding() -> None:
    # The first token comes a little later than the engine says it was ready.
    found = entry((0.6, output(1, RequestTimings(wait_s=0.2, run_s=0.3))))
    assert told(found) == [("engine.wait", 0.0, 0.2), ("engine.prefill", 0.2, 0.5)]


def test_a_pulled_kv_cache_was_read_at_the_end_of_the_wait() -> None:
    timings = RequestTimings(wait_s=0.5, run_s=0.1, kv_pull=KvPull(640, 0.2))
    found = entry((0.6, output(1, timings)))
    assert told(found) == [("engine.wait", 0.0, 0.5), ("kv.pull", 0.3, 0.5), ("engine.decode", 0.5, 0.6)]
    longer_than_the_wait = RequestTimings(wait_s=0.5, run_s=0.1, kv_pull=KvPull(640, 0.7))
    assert told(entry((0.6, output(1, longer_than_the_wait))))[1] == ("kv.pull", 0.0, 0.5)


def test_an_attempt_that_never_ran_has_one_span() -> None:
    found = entry()
    assert told(found) == []
    whole = spans.whole(found, "decode-0", WorkerRole.DECODE, ARRIVED_S + 1.5, "error")
    assert (whole.name, whole.began_s, whole.ended_s) == ("worker.decode", ARRIVED_S, ARRIVED_S + 1.5)
    assert whole.attributes == {
        spans.WORKER: "decode-0",
        spans.ROLE: "decode",
        spans.REQUEST_ID: "r",
        spans.ATTEMPT: 2,
        spans.INPUT_TOKENS: 30,
        spans.OUTPUT_TOKENS: 0,
        spans.FINISH_REASON: "error",
    }
