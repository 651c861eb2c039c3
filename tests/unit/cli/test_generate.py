"""What `slos-serve generate` prints of a stream."""

from __future__ import annotations

from typing import Any

import pytest

from cli import generate as command
from cli import target
from slos_serve import Event
from slos_serve.events import event_from_wire
from slos_serve.v1 import inference_pb2, sampling_pb2


def events() -> list[Event]:
    """Return the events of a stream whose id the router made up."""
    finished = inference_pb2.Finished(reason=sampling_pb2.FINISH_REASON_LENGTH, completion_tokens=2)
    finished.achieved.MergeFrom(inference_pb2.Achieved(ttft_s=0.25, worst_gap_s=0.04, kept=True))
    messages = [
        inference_pb2.GenerateResponse(
            admission=inference_pb2.Admission(request_id="req-5", verdict=inference_pb2.VERDICT_GUARANTEED)
        ),
        inference_pb2.GenerateResponse(tokens=inference_pb2.TokenChunk(token_ids=[1, 2], text="Hello")),
        inference_pb2.GenerateResponse(finished=finished),
    ]
    return [event for message in messages if (event := event_from_wire(message)) is not None]


class FakeClient:
    """A test double of `slos_serve.Client`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        pass

    def generate(self, prompt: Any, **options: Any) -> list[Event]:
        return events()


def test_the_summary_names_the_request_by_the_id_that_the_router_gave_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(target, "Client", FakeClient)
    command.generate("Hi", address="127.0.0.1:1", request_id="")
    printed = capsys.readouterr()
    assert printed.out == "Hello\n", "the answer stands alone"
    assert printed.err.splitlines()[-1] == "req-5: 2 tokens, TTFT 250 ms, worst gap 40 ms; kept"
