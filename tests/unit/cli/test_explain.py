"""What is said of a request, from the console's own documents, and what of consoles that are none."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from cli.explain.asking import NoAnswerError, UnknownRequestError, ask_console
from cli.explain.report import report
from cli.target import Target
from router.observability.console.documents import lateness_document, request_document
from router.requests.lateness import Lateness, Sharer
from router.requests.phases import Phase
from router.requests.planning_log import PlanningLog, PlanningNote, PlanningRound
from router.requests.request_record import Ending, RequestRecord, Targets
from services.slo.admission import Outcome
from services.slo.attainment import Attainment, StageAttainment
from services.slo.latency_forecast import Forecast, Placement
from services.slo.planner import Binding

ARRIVAL_S = 1000.0
PLACEMENT = Placement("p-0", "d-0", ARRIVAL_S + 0.5, Forecast(0.4, 0.45), Forecast(0.02, 0.03))
LATE = Lateness(
    stage=0,
    token=1,
    due_s=ARRIVAL_S + 0.5,
    came_s=ARRIVAL_S + 0.75,
    from_s=ARRIVAL_S,
    worker_id="p-0",
    steps=3,
    steps_s=0.6,
    own_s=0.1,
    sharers=(Sharer("long", 3, 1800, 0.4), Sharer("gone", 1, 0, 0.05)),
    others=2,
    others_s=0.05,
    kept_since_s=ARRIVAL_S + 0.1,
)


def planned(outcome: Outcome, rounds: int = 1, placement: Placement | None = PLACEMENT) -> PlanningLog:
    log = PlanningLog()
    for number in range(rounds - 1):
        at = PlanningRound(number + 7, ARRIVAL_S + 0.01 * number, candidates=2)
        log.add(PlanningNote(at, Outcome.HELD, binding=Binding.PREFILL_TIME, earliest_guarantee_s=0.3))
    last = PlanningRound(rounds + 6, ARRIVAL_S + 0.02 * rounds, candidates=1)
    binding = Binding.NONE if outcome is Outcome.GUARANTEED else Binding.PREFILL_TIME
    log.add(PlanningNote(last, outcome, placement, binding=binding))
    return log


def record(outcome: Outcome, ending: Ending, missed: str = "", rounds: int = 1) -> RequestRecord:
    stage = StageAttainment(4, 0.03, 0.04, 1 if "token" in missed else 0, 0.05, ARRIVAL_S + 0.75)
    return RequestRecord(
        request_id="[bold]r-1[/]",
        tenant="",
        application="",
        profile="chatbot",
        targets=Targets(0.5, None, (0.05,)),
        guaranteed=outcome is Outcome.GUARANTEED,
        ending=ending,
        arrival_s=ARRIVAL_S,
        ended_s=ARRIVAL_S + 1.0,
        prompt_tokens=300,
        planning=planned(outcome, rounds),
        completion_tokens=5,
        prefill_worker_id="p-0",
        decode_worker_id="d-0",
        attainment=Attainment(0.75, 0.5, (stage,), 0.04, missed),
        phases_s=dict.fromkeys((Phase.QUEUE, Phase.PREFILL, Phase.HANDOVER, Phase.DECODE), 0.25),
        changes=((Phase.QUEUE, ARRIVAL_S + 0.25), (Phase.PREFILL_WAIT, ARRIVAL_S + 0.75)),
        phase=Phase.DECODE,
        broken_by=Phase.PREFILL_WAIT if ending is Ending.MISSED else None,
    )


def said(of: RequestRecord, *late: Lateness) -> list[str]:
    promises = {"long": ("summarizer", False)}
    document = request_document(of, 0.0, "")
    document["late"] = [lateness_document(one, ARRIVAL_S, promises.get) for one in late]
    # As it comes over the wire.
    return list(report(json.loads(json.dumps(document)), 100))


def test_a_broken_guarantee() -> None:
    lines = said(record(Outcome.GUARANTEED, Ending.MISSED, "TTFT 0.750 s > 0.500 s"), LATE)
    assert lines[:5] == [
        "request [bold]r-1[/]: missed: TTFT 0.750 s > 0.500 s; lost in prefill wait",
        "contract   chatbot: first token within 500 ms, then 50 ms for each further token",
        "verdict    guaranteed; predicted TTFT 400 ms (bound 450 ms), TPOT 20 ms",
        "achieved   TTFT 750 ms; TPOT 40 ms (mean 30 ms)",
        "served     300 tokens in (0 cached), 5 out by p-0, then d-0, in 1.00 s",
    ]
    assert lines[6:8] == [
        "planning   1 round, times from its arrival",
        "      20 ms  round 7 of 1 request: guaranteed, on p-0, then d-0, first token expected after 400 ms",
    ]
    assert [line.split()[0] for line in lines[9:14]] == ["queue", "prefill", "decode", "first", "first"]
    assert lines[15:] == [
        "first token was due after 500 ms and came 250 ms late",
        "  3 steps of p-0 from its arrival on took 600 ms; by their tokens, this much of it went into",
        "     100 ms  this request",
        "     400 ms  long (summarizer, best effort, 1800 prompt tokens in 3 steps)",
        "      50 ms  gone (output in 1 step)",
        "      50 ms  2 more, and what this router does not know by name",
        "  steps before 100 ms are forgotten",
    ]


def test_a_kept_guarantee_has_nobody_to_blame() -> None:
    lines = said(record(Outcome.GUARANTEED, Ending.KEPT))
    assert lines[0] == "request [bold]r-1[/]: kept"
    assert not [line for line in lines if "was due" in line]


def test_best_effort_that_kept_its_targets_is_told_from_what_had_none() -> None:
    kept = record(Outcome.BEST_EFFORT, Ending.UNPROMISED)
    assert said(kept)[0] == "request [bold]r-1[/]: served without a guarantee, all targets kept"
    free = replace(kept, targets=Targets(None, None, ()))
    assert said(free)[0] == "request [bold]r-1[/]: served without a guarantee, and asked for none"


def test_best_effort_says_what_forbade_a_guarantee_and_how_often_it_was_looked_at() -> None:
    lines = said(
        record(Outcome.BEST_EFFORT, Ending.UNPROMISED, "token 2 of decode stage 1 was 10.0 ms late", rounds=40)
    )
    assert lines[0] == "request [bold]r-1[/]: best effort, late: token 2 of decode stage 1 was 10.0 ms late"
    assert lines[2].startswith("verdict    best effort, because of prefill time; ")
    assert "1 of 4 tokens late" in lines[3]
    rounds = lines[7 : lines.index("", 7)]
    assert len(rounds) == 13
    assert rounds[0].endswith("round 7 of 2 requests: held, prefill time binds, room expected in 300 ms")
    assert rounds[-2].split() == ["…", "28", "more"]
    assert "round 46 of 1 request: best effort" in rounds[-1]


def test_a_request_that_was_refused_and_one_that_nobody_wants_anything_of() -> None:
    refused = replace(
        record(Outcome.REFUSED, Ending.REFUSED),
        attainment=None, phase=None, phases_s=None, changes=(), detail="prefill time binds",
        prefill_worker_id="", decode_worker_id="", completion_tokens=0,
    )  # fmt: skip
    lines = said(refused)
    assert lines[0] == "request [bold]r-1[/]: refused, prefill time binds"
    assert lines[2].startswith("verdict    refused, because of prefill time")
    assert lines[3] == "achieved   no token"
    assert not [line for line in lines if "█" in line]
    nothing = replace(refused, targets=Targets(None, None, ()), profile="no contract")
    assert said(nothing)[1] == "contract   no contract: no targets"
    slow = replace(refused, targets=Targets(None, 5.0, (0.1,)))
    assert said(slow)[1].startswith("contract   chatbot: first token within 5 times what an idle worker takes, then")


def test_a_late_token_of_a_stage_is_marked_in_the_timeline() -> None:
    late = replace(LATE, stage=1, token=2, from_s=ARRIVAL_S + 0.75, due_s=ARRIVAL_S + 0.85, came_s=ARRIVAL_S + 0.9)
    lines = said(record(Outcome.GUARANTEED, Ending.MISSED, "token"), replace(late, steps=0))
    assert [line for line in lines if line.startswith("token 2 of stage 1 due ") and line.endswith("850 ms")]
    assert [line for line in lines if line.startswith("token 2 of stage 1 ") and line.endswith("900 ms")]
    assert lines[-2:] == [
        "token 2 of stage 1 was due after 850 ms and came 50 ms late",
        "  no step of p-0 since 750 ms is remembered",
    ]


@contextmanager
def answering(status: int, body: bytes, heard: list[str] | None = None) -> Iterator[str]:
    """A server that answers everything alike, and its URL; `heard` gets the credential of every request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if heard is not None:
                heard.append(self.headers.get("authorization", ""))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_what_a_console_answers_is_taken_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering(200, b'{"request_id": "r"}') as url:
        assert ask_console(url, "r", Target("")) == {"request_id": "r"}


def test_a_request_that_a_console_does_not_know() -> None:
    with answering(404, b'{"error": "it is done, and forgotten"}') as url, pytest.raises(UnknownRequestError) as raised:
        ask_console(url, "r", Target(""))
    assert str(raised.value) == "request r: it is done, and forgotten"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "is no console: HTTP 200"),
        (404, b"not found", "is no console: HTTP 404"),
        (200, b"[]", "is no console"),
        (503, b'{"error": "32 readers are served already"}', "answers: 32 readers"),
    ],
)
def test_what_is_no_answer_is_said_with_the_address(status: int, body: bytes, words: str) -> None:
    with answering(status, body) as url, pytest.raises(NoAnswerError) as raised:
        ask_console(url, "r", Target(""))
    assert words in str(raised.value)
    assert url in str(raised.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:port", "nonsense"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(NoAnswerError, match=url):
        ask_console(url, "r", Target(""))


@pytest.mark.parametrize("status", [401, 403])
def test_a_console_that_wants_to_know_who_asks(status: int) -> None:
    with answering(status, b'{"error": "who asks?"}') as url, pytest.raises(NoAnswerError) as raised:
        ask_console(url, "r", Target("", credential="sk-0123456789abcdef"))
    assert f"answers {status}" in str(raised.value)
    assert "SLOS_SERVE_API_KEY" in str(raised.value)
    assert "sk-0123456789abcdef" not in str(raised.value)


def test_a_key_is_sent_to_a_console_but_not_unencrypted_to_another_machine() -> None:
    asks = Target("", credential="sk-0123456789abcdef")
    heard: list[str] = []
    with answering(200, b'{"request_id": "r"}', heard) as url:
        ask_console(url, "r", asks)
        ask_console(url, "r", Target(""))
    assert heard == ["Bearer sk-0123456789abcdef", ""]
    with pytest.raises(NoAnswerError, match=r"unencrypted to 192\.0\.2\.1:8001"):
        ask_console("http://192.0.2.1:8001/", "r", asks)
