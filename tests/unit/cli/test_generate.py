"""What `slos-serve generate` prints of a stream."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from cli import generate as command
from cli import target
from slos_serve import Event
from slos_serve.events import event_from_wire
from slos_serve.v1 import inference_pb2, sampling_pb2


def events(
    verdict: inference_pb2.Verdict.ValueType = inference_pb2.VERDICT_GUARANTEED,
    reason: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_LENGTH,
    missed: str = "",
) -> list[Event]:
    """Return the events of a stream whose id the router made up."""
    finished = inference_pb2.Finished(reason=reason, completion_tokens=2)
    finished.achieved.MergeFrom(inference_pb2.Achieved(ttft_s=0.25, worst_gap_s=0.04, kept=not missed, missed=missed))
    messages = [
        inference_pb2.GenerateResponse(admission=inference_pb2.Admission(request_id="req-5", verdict=verdict)),
        inference_pb2.GenerateResponse(tokens=inference_pb2.TokenChunk(token_ids=[1, 2], text="Hello")),
        inference_pb2.GenerateResponse(finished=finished),
    ]
    return [event for message in messages if (event := event_from_wire(message)) is not None]


class FakeClient:
    """A test double of `slos_serve.Client`."""

    stream = events()

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        pass

    def generate(self, prompt: Any, **options: Any) -> list[Event]:
        return self.stream


def test_the_summary_names_the_request_by_the_id_that_the_router_gave_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(target, "Client", FakeClient)
    command.generate("Hi", address="127.0.0.1:1", request_id="")
    printed = capsys.readouterr()
    assert printed.out == "Hello\n", "the answer stands alone"
    assert printed.err.splitlines()[-1] == "req-5: 2 tokens, TTFT 250 ms, worst gap 40 ms; kept"


def last_line(stream: list[Event], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command says at the end of a stream."""
    monkeypatch.setattr(target, "Client", type("Scripted", (FakeClient,), {"stream": stream}))
    command.generate("Hi", address="127.0.0.1:1", request_id="")
    return capsys.readouterr().err.splitlines()[-1]


def test_kept_is_said_of_promises_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert last_line(events(inference_pb2.VERDICT_BEST_EFFORT), monkeypatch, capsys).endswith("worst gap 40 ms")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (inference_pb2.VERDICT_GUARANTEED, "; missed: TTFT"),
        (inference_pb2.VERDICT_BEST_EFFORT, "; missed, not promised: TTFT"),
    ],
)
def test_a_missed_target_is_said_with_whether_it_was_promised(
    verdict: inference_pb2.Verdict.ValueType,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert last_line(events(verdict, missed="TTFT"), monkeypatch, capsys).endswith(said)


@pytest.mark.parametrize("verdict", [inference_pb2.VERDICT_GUARANTEED, inference_pb2.VERDICT_BEST_EFFORT])
def test_a_cancelled_request_is_said_to_be_and_fails_the_command(
    verdict: inference_pb2.Verdict.ValueType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        last_line(events(verdict, sampling_pb2.FINISH_REASON_ABORT), monkeypatch, capsys)
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "req-5: cancelled after 2 tokens, TTFT 250 ms, worst gap 40 ms"
