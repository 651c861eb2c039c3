"""A request that is cancelled, or whose client is gone, leaves nothing behind, whatever phase it was in."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from slos_serve.v1 import inference_pb2, sampling_pb2
from tests.support.cluster import Answer, ClusterUnderTest, greedy
from tests.support.eventually import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

FREED_WITHIN_S = 9.0  # the lease of a KV cache is 10 s: what only its end gives back is too late
LONG_PROMPT = [20 + index % 900 for index in range(6000)]


def queue_up(cluster: ClusterUnderTest) -> list[Any]:
    """Long prompts on both prefill workers, so that the next request waits in the router."""
    streams = [cluster.stub.Generate(greedy([20 + index, *LONG_PROMPT], 2), timeout=60) for index in range(6)]
    for stream in streams:
        next(iter(stream))
    return streams


def consume(stream: Iterator[inference_pb2.GenerateResponse], answer: Answer) -> threading.Thread:
    def follow() -> None:
        for response in stream:
            answer.take(response)

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


@pytest.mark.parametrize("phase", ["queued", "prefilling", "hand-over", "decoding"])
def test_cancel_frees_everything(emulated: ClusterUnderTest, phase: str) -> None:
    others = queue_up(emulated) if phase == "queued" else []
    request = greedy(LONG_PROMPT if phase == "prefilling" else [20, 21, 22], 2000, request_id=f"cancel-{phase}")
    answer = Answer()
    thread = consume(emulated.stub.Generate(request, timeout=60), answer)
    wait_until(lambda: answer.admission is not None, "admission")
    if phase == "hand-over":
        wait_until(lambda: len(answer.token_ids) == 1 or bool(answer.chunks), "the first token")
    if phase == "decoding":
        wait_until(lambda: len(answer.token_ids) > 5, "some tokens")
    emulated.stub.Cancel(inference_pb2.CancelRequest(request_id=request.request_id), timeout=10)
    thread.join(timeout=10)
    assert answer.finished is not None
    assert answer.finished.reason == sampling_pb2.FINISH_REASON_ABORT
    assert answer.finished.completion_tokens == len(answer.token_ids)
    for stream in others:
        stream.cancel()
    emulated.wait_empty(FREED_WITHIN_S)


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.3])
def test_a_client_that_leaves_at_any_moment_frees_everything(emulated: ClusterUnderTest, delay_s: float) -> None:
    before = emulated.state().counters.cancelled
    streams = [emulated.stub.Generate(greedy([20 + index, 21, 22], 2000), timeout=60) for index in range(8)]
    for stream in streams:
        next(iter(stream))
    time.sleep(delay_s)
    for stream in streams:
        stream.cancel()
    emulated.wait_empty(FREED_WITHIN_S)
    assert emulated.state().counters.cancelled == before + 8
    emulated.generate(greedy([20, 21, 22], 3))


def test_a_client_deadline_ends_the_request(emulated: ClusterUnderTest) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(emulated.stub.Generate(greedy([20, 21, 22], 5000), timeout=0.5))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    emulated.wait_empty(FREED_WITHIN_S)
