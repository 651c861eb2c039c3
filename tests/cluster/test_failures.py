"""Workers are killed for real: streams go on with exactly the tokens of an undisturbed run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest

from slos_serve.v1 import inference_pb2
from tests.support.cluster import Answer, ClusterUnderTest, greedy
from tests.support.eventually import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

PROMPTS = [[20 + index, *range(30, 60 + 5 * index)] for index in range(12)]
TOKENS = 150
ROUNDS = 20


def undisturbed(cluster: ClusterUnderTest) -> list[list[int]]:
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        return [answer.token_ids for answer in pool.map(lambda p: cluster.generate(greedy(p, TOKENS)), PROMPTS)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@contextlib.contextmanager
def streaming(
    cluster: ClusterUnderTest,
    prompts: list[list[int]],
    answers: list[Answer],
    tokens: int = TOKENS,
    timeout_s: float = 60,
) -> Iterator[list[concurrent.futures.Future[None]]]:
    """All at once, each into its answer while it runs."""

    def follow(prompt: list[int], answer: Answer) -> None:
        for response in cluster.stub.Generate(greedy(prompt, tokens), timeout=timeout_s):
            answer.take(response)

    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        yield [pool.submit(follow, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
@pytest.mark.parametrize("after_tokens", [0, 1, 40])
def test_a_killed_worker_costs_a_pause_and_no_token(emulated: ClusterUnderTest, victim: str, after_tokens: int) -> None:
    emulated.wait_ready(4)
    expected = undisturbed(emulated)
    lost = emulated.state().counters.workers_lost
    answers = [Answer() for _ in PROMPTS]
    with streaming(emulated, PROMPTS, answers) as streams:
        wait_until(lambda: max(len(answer.token_ids) for answer in answers) >= after_tokens, "tokens")
        family = emulated.kill(victim)
        for stream in streams:
            stream.result(timeout=60)
    assert [answer.checked().token_ids for answer in answers] == expected
    wait_until(lambda: gone(family), "no process of the killed worker is left")
    wait_until(lambda: emulated.state().counters.workers_lost == lost + 1, "the loss is counted")
    emulated.start_again(victim)
    emulated.wait_ready(4)
    emulated.wait_empty()
    used: set[str] = set()
    # Which decode worker is preferred depends on what was learnt of each.
    for _ in range(ROUNDS):
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            again = list(pool.map(lambda prompt: emulated.generate(greedy(prompt, 10)), PROMPTS))
        used |= {worker for a in again if (a_ := a.admission) for worker in (a_.prefill_worker_id, a_.decode_worker_id)}
        if victim in used:
            break
    assert victim in used, "the worker started again is used again"


def test_a_worker_that_drains_finishes_what_it_has_and_gets_nothing_new(emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    answers = [Answer() for _ in PROMPTS]
    with streaming(emulated, PROMPTS, answers) as streams:
        wait_until(lambda: any(len(answer.token_ids) >= 2 for answer in answers), "a decode worker has work")
        # Which of the two it is depends on how fast the router believes each of them.
        admission = next(answer.admission for answer in answers if len(answer.token_ids) >= 2)
        assert admission is not None
        leaving = admission.decode_worker_id
        process = emulated.workers[leaving].process()
        assert process is not None
        process.send_signal(signal.SIGTERM)
        for stream in streams:
            stream.result(timeout=60)
    finished = [answer.checked().finished for answer in answers]
    assert all(one is not None and one.restarts == 0 for one in finished)
    wait_until(lambda: gone([process]), "the drained worker ends")
    after = emulated.generate(greedy(PROMPTS[0], 5))
    assert after.admission is not None
    assert after.admission.decode_worker_id == ({"decode-0", "decode-1"} - {leaving}).pop()
    emulated.start_again(leaving)
    emulated.wait_ready(4)


def test_without_workers_a_request_waits_and_is_then_told(emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    for victim in ("decode-0", "decode-1"):
        emulated.kill(victim)
    wait_until(lambda: "no decode worker" in " ".join(emulated.state().warnings), "the router notices")
    began_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(emulated.stub.Generate(greedy([20], 5), timeout=30))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "no decode worker" in (caught.value.details() or "")
    assert time.monotonic() - began_s >= 2.0, "it waited as long as configured"
    for victim in ("decode-0", "decode-1"):
        emulated.start_again(victim)
    emulated.wait_ready(4)
    emulated.generate(greedy([20], 5))


def test_a_stopped_worker_is_noticed_by_its_silence(emulated: ClusterUnderTest) -> None:
    """SIGSTOP: the process is there, its connections are open, and nothing comes."""
    emulated.wait_ready(4)
    process = emulated.workers["decode-0"].process()
    assert process is not None
    expected = emulated.generate(greedy(PROMPTS[0], TOKENS)).token_ids
    answers = [Answer() for _ in range(4)]
    with streaming(emulated, PROMPTS[:1] * 4, answers) as streams:
        wait_until(lambda: min(len(answer.token_ids) for answer in answers) >= 5, "tokens")
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for stream in streams:
                stream.result(timeout=60)
        finally:
            os.kill(process.pid, signal.SIGCONT)
    assert all(answer.checked().token_ids == expected for answer in answers)
    emulated.wait_ready(4)


def test_the_state_names_what_is_there(emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    roles = [worker.role for worker in emulated.state().workers]
    assert roles.count(inference_pb2.WORKER_ROLE_PREFILL) == roles.count(inference_pb2.WORKER_ROLE_DECODE) == 2
