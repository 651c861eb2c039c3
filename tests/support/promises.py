"""Requests with a promise, and one that is broken on purpose."""

from __future__ import annotations

import signal
import threading

from slos_serve.v1 import inference_pb2
from tests.support.cluster import ClusterUnderTest, greedy
from tests.support.eventually import wait_until

PROMPT = list(range(20, 120))
TTFT_S, TPOT_S = 3.0, 0.5
"""Loose: kept on a machine that is busy with other tests, too."""
HELD_S = 0.8
"""Longer than a first token may take that is to be missed, shorter than a worker may be silent."""
MISSED_TTFT_S = 0.4


def promised(request_id: str = "", tokens: int = 8) -> inference_pb2.GenerateRequest:
    request = greedy(PROMPT, tokens, request_id=request_id)
    request.contract.profile = "chatbot"
    request.contract.stages.add().prefill.ttft_s = TTFT_S
    request.contract.stages.add().decode.tpot_s = TPOT_S
    return request


def provoke_a_miss(cluster: ClusterUnderTest, request_id: str) -> None:
    """Have a first token promised while the prefill worker stands still, between two steps: nobody learns from it."""
    (held,) = (process.process() for name, process in cluster.workers.items() if name.startswith("prefill"))
    assert held is not None
    request = promised(request_id)
    request.contract.stages[0].prefill.ttft_s = MISSED_TTFT_S
    wait_until(lambda: _would_be_promised(cluster, request), f"a first token within {MISSED_TTFT_S} s is promised")
    held.send_signal(signal.SIGSTOP)
    release = threading.Timer(HELD_S, held.send_signal, (signal.SIGCONT,))
    release.start()
    try:
        answer = cluster.generate(request)
    finally:
        release.join()
    assert answer.admission is not None
    assert answer.finished is not None
    assert answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED
    assert not answer.finished.achieved.kept


def _would_be_promised(cluster: ClusterUnderTest, request: inference_pb2.GenerateRequest) -> bool:
    """Return whether a request would be promised now; if not, send one more, from which the router learns."""
    cluster.wait_empty()
    answer = cluster.stub.Quote(inference_pb2.QuoteRequest(request=request), timeout=30)
    if answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED:
        return True
    cluster.generate(promised())
    return False
