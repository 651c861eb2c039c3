"""Requests with a promise, and one that is broken on purpose."""

from __future__ import annotations

import signal
import time

from slos_serve.v1 import inference_pb2
from tests.support.cluster import Answer, ClusterUnderTest, greedy

PROMPT = list(range(20, 120))
TTFT_S, TPOT_S = 3.0, 0.2
"""Loose: guaranteed also by workers whose steps have just been disturbed."""
HELD_S = 0.5
"""Longer than the second token may take, shorter than a worker may be silent."""
CALMING_STREAMS = 20


def promised(request_id: str = "", tokens: int = 8) -> inference_pb2.GenerateRequest:
    request = greedy(PROMPT, tokens, request_id=request_id)
    request.contract.profile = "chatbot"
    request.contract.stages.add().prefill.ttft_s = TTFT_S
    request.contract.stages.add().decode.tpot_s = TPOT_S
    return request


def calm(cluster: ClusterUnderTest) -> None:
    """Let steps that nobody disturbs pass, until promises are made again."""
    for _ in range(CALMING_STREAMS):
        answer = cluster.stub.Quote(inference_pb2.QuoteRequest(request=promised()), timeout=10)
        if answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED:
            return
        cluster.generate(greedy(PROMPT, 100))
    raise AssertionError(f"nothing is promised after {CALMING_STREAMS} streams")


def provoke_a_miss(cluster: ClusterUnderTest, request_id: str = "") -> Answer:
    """Hold the decode worker of a guaranteed request from its first token on."""
    calm(cluster)
    answer = Answer()
    for response in cluster.stub.Generate(promised(request_id), timeout=60):
        answer.take(response)
        if len(answer.chunks) == 1 and not answer.finished:
            assert answer.admission is not None
            assert answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED
            held = cluster.workers[answer.admission.decode_worker_id].process()
            assert held is not None
            held.send_signal(signal.SIGSTOP)
            time.sleep(HELD_S)
            held.send_signal(signal.SIGCONT)
    finished = answer.checked().finished
    assert finished is not None
    assert not finished.achieved.kept
    return answer
