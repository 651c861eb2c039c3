"""Quotes and sessions, with emulated engines."""

from __future__ import annotations

import pytest

from slos_serve.v1 import contract_pb2, inference_pb2
from tests.support.cluster import ClusterUnderTest, greedy
from tests.support.promises import promised

pytestmark = pytest.mark.cluster

PROMPT = list(range(20, 120))


def quote(cluster: ClusterUnderTest, request: inference_pb2.GenerateRequest) -> inference_pb2.QuoteResponse:
    return cluster.stub.Quote(inference_pb2.QuoteRequest(request=request), timeout=10)


def test_a_quote_is_what_generate_would_answer_and_runs_nothing(emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    emulated.wait_empty()
    received = emulated.state().counters.received
    request = promised("quoted", 5)
    # What other tests did to this cluster may have left the learnt bound of a hand-over high.
    request.contract.stages[1].decode.tpot_s = 5.0
    quoted = quote(emulated, request).admission
    assert emulated.state().counters.received == received
    answer = emulated.generate(request)
    assert answer.admission is not None
    assert quoted.verdict == answer.admission.verdict == inference_pb2.VERDICT_GUARANTEED
    assert quoted.predicted.ttft_s <= quoted.predicted.ttft_bound_s
    assert quoted.binding == inference_pb2.BINDING_RESOURCE_UNSPECIFIED


def test_a_quote_tells_impossible_from_refused_now(emulated: ClusterUnderTest) -> None:
    request = greedy(PROMPT, 5)
    request.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    request.contract.stages.add().prefill.ttft_s = 1e-4
    answer = quote(emulated, request)
    assert answer.impossible
    assert answer.admission.verdict == inference_pb2.VERDICT_UNSPECIFIED
    assert answer.admission.binding == inference_pb2.BINDING_RESOURCE_PREFILL_TIME


def test_the_requests_of_a_session_share_a_contract_and_the_last_is_loose(emulated: ClusterUnderTest) -> None:
    first, later, last = (greedy(PROMPT, 3) for _ in range(3))
    first.contract.profile = "tool_use"
    first.contract.task_deadline_s = 30.0
    for request in (first, later, last):
        request.contract.session_id = "tools"
    last.contract.session_final = True
    contracts = []
    for request in (first, later, last):
        answer = emulated.generate(request)
        assert answer.admission is not None
        assert answer.finished is not None
        contracts.append(answer.admission.contract)
    assert [contract.stages[1].decode.tpot_s for contract in contracts] == [0.05, 0.05, 0.1]
    assert all(contract.task_deadline_s == 30.0 for contract in contracts)


def test_a_task_that_misses_its_deadline_says_so(emulated: ClusterUnderTest) -> None:
    request = greedy(PROMPT, 30)
    request.contract.task_deadline_s = 0.05
    answer = emulated.generate(request)
    assert answer.finished is not None
    assert not answer.finished.achieved.kept
    assert "deadline" in answer.finished.achieved.missed
