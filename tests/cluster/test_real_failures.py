"""Real vLLM: cancellation in every phase, and workers killed for real."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from slos_serve.v1 import inference_pb2, sampling_pb2
from tests.cluster.test_failures import gone, streaming
from tests.support.cluster import Answer, ClusterUnderTest, greedy
from tests.support.eventually import wait_until
from tests.support.text import text_tokens

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

FREED_WITHIN_S = 20.0  # far below the lease of a KV cache
TOKENS = 48


@pytest.fixture(scope="module")
def text(model_dir: Path) -> list[int]:
    return text_tokens(model_dir, 20_000)


@pytest.mark.parametrize("phase", ["queued", "prefilling", "between prefill and pull", "decoding"])
@pytest.mark.parametrize("how", ["cancel", "disconnect"])
def test_what_ends_early_frees_everything(real: ClusterUnderTest, text: list[int], phase: str, how: str) -> None:
    real.wait_ready(2)
    others = []
    if phase == "queued":
        others = [real.stub.Generate(greedy(text[index : index + 2000], 2), timeout=90) for index in range(3)]
        for other in others:
            next(iter(other))
    prompt = text[5000:7000] if phase == "prefilling" else text[5000:5200]
    request_id = f"{how}-{phase.replace(' ', '-')}"
    stream = real.stub.Generate(greedy(prompt, 500, request_id=request_id), timeout=90)
    answer = Answer()

    def follow() -> None:
        with contextlib.suppress(grpc.RpcError):  # what a client sees that left; a cancelled one is checked below
            for response in stream:
                answer.take(response)

    thread = threading.Thread(target=follow)
    thread.start()
    wait_until(lambda: answer.admission is not None, "admission")
    if phase == "prefilling":
        wait_until(lambda: real.worker("prefill-0").running_requests > 0 or bool(answer.chunks), "prefill")
    elif phase == "between prefill and pull":
        wait_until(lambda: bool(answer.chunks), "the first token")
    elif phase == "decoding":
        wait_until(lambda: len(answer.token_ids) >= 5, "tokens")
    if how == "cancel":
        real.stub.Cancel(inference_pb2.CancelRequest(request_id=request_id), timeout=10)
    else:
        stream.cancel()
    for other in others:
        other.cancel()
    thread.join(timeout=20)
    if how == "cancel":
        assert answer.checked().finished.reason == sampling_pb2.FINISH_REASON_ABORT  # type: ignore[union-attr]
    real.wait_empty(FREED_WITHIN_S + 2.0 if phase in ("queued", "prefilling") else FREED_WITHIN_S)


@pytest.mark.parametrize(
    ("victim", "after_tokens"),
    [("decode-0", 10), ("prefill-0", 0), ("prefill-0", 1)],
    ids=["decode worker", "prefill worker", "owner of the KV cache between prefill and pull"],
)
def test_a_killed_worker_costs_a_pause_and_no_token(
    real: ClusterUnderTest, text: list[int], victim: str, after_tokens: int
) -> None:
    real.wait_ready(2)
    prompts = [text[1000 * index : 1000 * index + 300 + 40 * index] for index in range(4)]
    expected = [real.generate(greedy(prompt, TOKENS)).token_ids for prompt in prompts]
    answers = [Answer() for _ in prompts]
    with streaming(real, prompts, answers, TOKENS, timeout_s=400) as streams:
        wait_until(lambda: all(answer.admission is not None for answer in answers), "admission")
        wait_until(lambda: max(len(answer.token_ids) for answer in answers) >= after_tokens, "tokens")
        family = real.kill(victim)
        killed_s = time.monotonic()
        assert len(family) >= 2, "a worker has an engine process of its own"
        wait_until(lambda: gone(family), "no process of the killed worker is left", timeout_s=10)
        real.start_again(victim)
        for stream in streams:
            stream.result(timeout=400)
    assert [answer.checked().token_ids for answer in answers] == expected
    recomputes = sum(answer.finished.kv_recomputes for answer in answers if answer.finished is not None)
    restarts = sum(answer.finished.restarts for answer in answers if answer.finished is not None)
    print(
        f"{victim} killed after {after_tokens} tokens: {restarts} restarts, {recomputes} KV recomputes, "
        f"all complete {time.monotonic() - killed_s:.1f} s later"
    )
    assert restarts + recomputes > 0, "the kill was felt"
    real.wait_ready(2)
    real.wait_empty()


def test_a_worker_that_does_not_match_is_never_used(real: ClusterUnderTest, text: list[int]) -> None:
    real.wait_ready(2)
    expected = real.generate(greedy(text[:500], TOKENS)).token_ids
    other = {"SLOS_SERVE_ENGINE__VLLM__BLOCK_TOKENS": "64", "SLOS_SERVE_ENGINE__VLLM__WARM_UP": "false"}
    stranger = real.launcher.start_worker("decode", 1, extra=other)
    try:
        wait_until(
            lambda: any(
                worker.worker_id == "decode-1" and worker.health == inference_pb2.WORKER_HEALTH_INCOMPATIBLE
                for worker in real.state().workers
            ),
            "the worker with other blocks is seen and left out",
        )
        assert "block_tokens: 64 != 32" in real.worker("decode-1").detail
        for _ in range(3):
            answer = real.generate(greedy(text[:500], TOKENS))
            assert answer.token_ids == expected
            assert answer.admission is not None
            assert answer.admission.decode_worker_id == "decode-0"
    finally:
        process = stranger.process()
        if process is not None:
            process.terminate()
            process.wait(timeout=30)
