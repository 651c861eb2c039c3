"""What makes no sense gets a status that names the field, and the next request is served."""

from __future__ import annotations

import math

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2
from tests.support.cluster import ClusterUnderTest, greedy

pytestmark = pytest.mark.cluster

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def request(**fields: object) -> inference_pb2.GenerateRequest:
    base = greedy([20, 21, 22], 4)
    base.MergeFrom(inference_pb2.GenerateRequest(**fields))  # type: ignore[arg-type]
    return base


def sampling(**fields: object) -> inference_pb2.GenerateRequest:
    return request(sampling=sampling_pb2.SamplingParams(**fields))  # type: ignore[arg-type]


def contract(**fields: object) -> inference_pb2.GenerateRequest:
    return request(contract=contract_pb2.Contract(**fields))  # type: ignore[arg-type]


def prefill(**target: float) -> contract_pb2.Stage:
    return contract_pb2.Stage(prefill=contract_pb2.PrefillStage(**target))


def decode(tpot_s: float) -> contract_pb2.Stage:
    return contract_pb2.Stage(decode=contract_pb2.DecodeStage(tpot_s=tpot_s))


def failure(cluster: ClusterUnderTest, bad: inference_pb2.GenerateRequest, **metadata: str) -> grpc.Call:
    names = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    with pytest.raises(grpc.RpcError) as caught:
        list(cluster.stub.Generate(bad, timeout=20, metadata=names))
    assert isinstance(caught.value, grpc.Call)
    return caught.value


def named_fields(call: grpc.Call) -> list[str]:
    status = rpc_status.from_call(call)
    assert status is not None, "details are in grpc-status-details-bin"
    fields = []
    reasons = []
    for detail in status.details:
        violations, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(violations):
            fields += [violation.field for violation in violations.field_violations]
        elif detail.Unpack(info):
            reasons.append(info.reason)
            assert info.domain == "slos-serve"
    assert len(reasons) == 1
    return fields


BAD_REQUESTS = {
    "no input": (inference_pb2.GenerateRequest(), "input"),
    "empty text": (inference_pb2.GenerateRequest(text=""), "text"),
    "empty chat": (inference_pb2.GenerateRequest(chat=inference_pb2.ChatInput()), "chat"),
    "unknown role": (
        inference_pb2.GenerateRequest(
            chat=inference_pb2.ChatInput(messages=[inference_pb2.ChatMessage(role="wizard", content="hi")])
        ),
        "chat.messages[0].role",
    ),
    "no tokens": (inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds()), "token_ids"),
    "prompt over the limit": (greedy([20] * 8192, 1), "token_ids"),
    "token id out of range": (greedy([20, 1024], 1), "token_ids.ids[1]"),
    "negative token id": (greedy([-1], 1), "token_ids.ids[0]"),
    "max_tokens 0": (sampling(max_tokens=0), "sampling.max_tokens"),
    "max_tokens negative": (sampling(max_tokens=-5), "sampling.max_tokens"),
    "max_tokens over the limit": (sampling(max_tokens=8190), "sampling.max_tokens"),
    "temperature NaN": (sampling(temperature=math.nan), "sampling.temperature"),
    "temperature negative": (sampling(temperature=-0.1), "sampling.temperature"),
    "top_p 0": (sampling(top_p=0.0), "sampling.top_p"),
    "top_k negative": (sampling(top_k=-1), "sampling.top_k"),
    "min_tokens over max_tokens": (sampling(min_tokens=5), "sampling.min_tokens"),
    "penalty infinite": (sampling(frequency_penalty=math.inf), "sampling.frequency_penalty"),
    "logprobs negative": (sampling(logprobs=-1), "sampling.logprobs"),
    "logit bias out of range": (sampling(logit_bias={20: 1000.0}), "sampling.logit_bias[20]"),
    "stop token out of range": (sampling(stop_token_ids=[5000]), "sampling.stop_token_ids"),
    "10,000 stop strings": (sampling(stop=["x"] * 10_000), "sampling.stop"),
    "empty stop string": (sampling(stop=["ok", ""]), "sampling.stop[1]"),
    "request id with blanks": (request(request_id="a b"), "request_id"),
    "request id too long": (request(request_id="a" * 129), "request_id"),
    "hint of nothing": (request(expected_output_tokens=0), "expected_output_tokens"),
    "unknown profile": (contract(profile="chat-bot"), "contract.profile"),
    "TTFT negative": (contract(stages=[prefill(ttft_s=-1.0)]), "contract.stages[0].prefill.ttft_s"),
    "TTFT NaN": (contract(stages=[prefill(ttft_s=math.nan)]), "contract.stages[0].prefill.ttft_s"),
    "slowdown below one": (contract(stages=[prefill(max_slowdown=0.5)]), "contract.stages[0].prefill.max_slowdown"),
    "prefill without target": (contract(stages=[prefill()]), "contract.stages[0].prefill"),
    "TPOT zero": (contract(stages=[decode(0.0)]), "contract.stages[0].decode.tpot_s"),
    "stages out of order": (contract(stages=[decode(0.1), prefill(ttft_s=1.0)]), "contract.stages[1].prefill"),
    "stage without kind": (contract(stages=[contract_pb2.Stage()]), "contract.stages[0].kind"),
    "two decode stages without end": (
        contract(stages=[decode(0.1), decode(0.2)]),
        "contract.stages[0].decode.ends_with",
    ),
    "value negative": (contract(value=-1.0), "contract.value"),
    "task deadline NaN": (contract(task_deadline_s=math.nan), "contract.task_deadline_s"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_request_that_makes_no_sense_is_refused_by_field(emulated: ClusterUnderTest, case: str) -> None:
    bad, field = BAD_REQUESTS[case]
    call = failure(emulated, bad)
    assert call.code() is INVALID, call.details()
    assert named_fields(call) == [field]
    emulated.generate(greedy([20, 21], 2))


def test_an_unknown_model_is_not_found(emulated: ClusterUnderTest) -> None:
    call = failure(emulated, request(model="gpt-9"))
    assert call.code() is grpc.StatusCode.NOT_FOUND
    assert named_fields(call) == ["model"]


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "0"])
def test_metadata_that_is_no_latency_is_refused_by_name(emulated: ClusterUnderTest, value: str) -> None:
    call = failure(emulated, request(), x_slo_ttft_ms=value)
    assert call.code() is INVALID
    assert named_fields(call) == ["x-slo-ttft-ms"]


def test_an_id_in_use_is_refused(emulated: ClusterUnderTest) -> None:
    first = emulated.stub.Generate(greedy([20], 200, request_id="twice"), timeout=60)
    next(iter(first))
    call = failure(emulated, greedy([20], 2, request_id="twice"))
    assert call.code() is grpc.StatusCode.ALREADY_EXISTS
    assert named_fields(call) == ["request_id"]
    first.cancel()


def test_the_id_of_a_refused_request_is_free_again(emulated: ClusterUnderTest) -> None:
    impossible = contract_pb2.Contract(stages=[prefill(ttft_s=1e-6)], on_overload=contract_pb2.ON_OVERLOAD_REFUSE)
    call = failure(emulated, request(request_id="second-try", contract=impossible))
    assert call.code() is grpc.StatusCode.FAILED_PRECONDITION
    emulated.generate(greedy([20], 2, request_id="second-try"))


def test_an_unknown_id_cannot_be_cancelled(emulated: ClusterUnderTest) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        emulated.stub.Cancel(inference_pb2.CancelRequest(request_id="nobody"), timeout=10)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert named_fields(caught.value) == ["request_id"]


def test_a_message_over_the_limit_is_refused(emulated: ClusterUnderTest) -> None:
    slightly = failure(emulated, inference_pb2.GenerateRequest(text="x" * 5_000_000))
    assert slightly.code() is INVALID
    assert named_fields(slightly) == ["request"]
    # Far over it gRPC itself refuses, before the message is read.
    assert failure(emulated, inference_pb2.GenerateRequest(text="x" * 20_000_000)).code() is (
        grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    emulated.generate(greedy([20, 21], 2))
