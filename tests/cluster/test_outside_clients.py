"""Clients that know nothing of this cluster, unmodified. `docs/reports/outside-clients.md` shows what they print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai.types.chat import ChatCompletionChunk

from tests.support.cluster import ClusterUnderTest
from tests.support.http_door import PATIENCE_S, HttpDoor
from tests.support.outside_clients import Offer, guidellm, inference_perf, vllm_bench_serve
from tests.support.reflection import generate_by_reflection, services_of

pytestmark = pytest.mark.cluster

IGNORE_EOS = {"ignore_eos": True}


@pytest.fixture
def client(door: HttpDoor, emulated: ClusterUnderTest) -> openai.OpenAI:
    emulated.wait_ready(4)
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)


def test_openai_models_and_whole_answers(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    text = client.completions.create(model="tiny", prompt="hello", max_tokens=5, extra_body=IGNORE_EOS, logprobs=2)
    assert text.choices[0].finish_reason == "length"
    assert text.usage is not None
    assert text.usage.completion_tokens == 5
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.tokens is not None
    assert len(text.choices[0].logprobs.tokens) == 5
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_completion_tokens=5,
        seed=7,
        extra_body={**IGNORE_EOS, "slo": {"ttft_ms": 60_000, "tpot_ms": 60_000}},
    )
    assert chat.choices[0].message.role == "assistant"
    assert chat.model_extra is not None
    assert chat.model_extra["slo"]["verdict"] == "guaranteed"


def test_openai_streams(client: openai.OpenAI) -> None:
    response = client.chat.completions.with_raw_response.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=IGNORE_EOS,
        extra_headers={"x-slo-ttft-ms": "60000", "x-slo-tpot-ms": "60000"},
    )
    assert response.headers["x-slo-verdict"] == "guaranteed"
    chunks: list[ChatCompletionChunk] = list(response.parse())
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content is not None) for chunk in chunks) >= 6
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["slo"]["kept"] is True
    with client.completions.create(
        model="tiny", prompt="x", max_tokens=2000, stream=True, extra_body=IGNORE_EOS
    ) as some:
        next(iter(some))


async def test_openai_async_streams(door: HttpDoor) -> None:
    async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", timeout=PATIENCE_S) as client:
        stream = await client.completions.create(
            model="tiny", prompt=[30, 31], max_tokens=5, stream=True, extra_body=IGNORE_EOS
        )
        reasons = [chunk.choices[0].finish_reason async for chunk in stream]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}


def test_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x", n=3)
    assert caught.value.param == "n"
    impossible = {"slo": {"ttft_ms": 0.01, "on_overload": "refuse"}}
    with pytest.raises(openai.BadRequestError, match="idle worker"):
        client.completions.create(model="tiny", prompt="x", extra_body=impossible)


@pytest.fixture
def offer(door: HttpDoor, emulated: ClusterUnderTest, model_dir: Path) -> Offer:
    emulated.wait_ready(4)
    return Offer(door.url, "tiny", model_dir)


def test_vllm_bench_serve(offer: Offer, tmp_path: Path) -> None:
    result = vllm_bench_serve(offer, tmp_path)
    assert result["completed"] == offer.prompts
    assert result["total_output_tokens"] == offer.prompts * offer.output_tokens
    assert result["request_goodput"] > 0


def test_inference_perf(offer: Offer, tmp_path: Path) -> None:
    goodput = inference_perf(replace(offer, prompts=16, rate_rps=4), tmp_path)["successes"]["goodput_metrics"]
    assert goodput["total_requests"] == 16
    assert goodput["good_requests"] > 0


def test_guidellm(offer: Offer, tmp_path: Path) -> None:
    assert "Benchmarking complete" in guidellm(replace(offer, prompts=12, rate_rps=4), tmp_path)


def test_a_client_that_knows_only_reflection(emulated: ClusterUnderTest) -> None:
    with grpc.insecure_channel(emulated.address) as channel:
        assert set(services_of(channel)) >= {"slos_serve.v1.Inference", "grpc.health.v1.Health"}
        answers = generate_by_reflection(channel, "hello", 3)
    assert answers[0].WhichOneof("event") == "admission"
    assert answers[-1].WhichOneof("event") == "finished"
    health: Any = health_pb2_grpc.HealthStub(emulated.channel)
    check = health_pb2.HealthCheckRequest(service="slos_serve.v1.Inference")
    assert health.Check(check, timeout=PATIENCE_S).status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def vllm_stub(emulated: ClusterUnderTest) -> Any:
    grpc_stubs = pytest.importorskip("smg_grpc_proto", reason="the protocol of vLLM's gRPC server").vllm_engine_pb2_grpc
    return grpc_stubs.VllmEngineStub(emulated.channel)


def vllm_request(request_id: str, **fields: Any) -> Any:
    from smg_grpc_proto import vllm_engine_pb2

    sampling = {"max_tokens": 5, "ignore_eos": True, "temperature": 0.0, **fields.pop("sampling", {})}
    prompt = fields.pop("prompt", {"text": "hello"})
    return vllm_engine_pb2.GenerateRequest(request_id=request_id, sampling_params=sampling, **prompt, **fields)


def test_vllm_grpc_generate(emulated: ClusterUnderTest, vllm_stub: Any) -> None:
    emulated.wait_ready(4)
    prompt = {"tokenized": {"input_ids": [30, 31, 32]}}
    metadata = (("x-slo-ttft-ms", "60000"), ("x-slo-tpot-ms", "60000"))
    call = vllm_stub.Generate(
        vllm_request("streamed", prompt=prompt, stream=True, sampling={"logprobs": 2}), metadata=metadata
    )
    assert dict(call.initial_metadata())["x-slo-verdict"] == "guaranteed"
    *chunks, last = list(call)
    ids = [token_id for chunk in chunks for token_id in chunk.chunk.token_ids]
    assert list(last.complete.output_ids) == ids
    assert len(ids) == 5
    assert (last.complete.finish_reason, last.complete.prompt_tokens) == ("length", 3)
    assert chunks[-1].chunk.completion_tokens == 5
    assert list(chunks[0].chunk.output_logprobs.token_ids) == ids[:1]
    assert len(chunks[0].chunk.output_logprobs.top_logprobs[0].token_ids) == 2
    (whole,) = list(vllm_stub.Generate(vllm_request("whole", prompt=prompt, sampling={"logprobs": 0})))
    assert list(whole.complete.output_ids) == ids
    assert list(whole.complete.output_logprobs.token_ids) == ids


def test_vllm_grpc_abort_and_what_is_said_about_the_server(emulated: ClusterUnderTest, vllm_stub: Any) -> None:
    from smg_grpc_proto import vllm_engine_pb2

    running = vllm_stub.Generate(vllm_request("abort-me", stream=True, sampling={"max_tokens": 4000}))
    next(running)
    info = vllm_stub.GetServerInfo(vllm_engine_pb2.GetServerInfoRequest())
    assert info.active_requests >= 1
    vllm_stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["abort-me", "nobody"]))
    assert [item.complete.finish_reason for item in running][-1] == "abort"
    emulated.wait_empty()
    model = vllm_stub.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest())
    assert (model.served_model_name, model.max_context_length, model.vocab_size) == ("tiny", 8192, 1024)
    assert vllm_stub.HealthCheck(vllm_engine_pb2.HealthCheckRequest()).healthy
    health: Any = health_pb2_grpc.HealthStub(emulated.channel)
    check = health_pb2.HealthCheckRequest(service="vllm.grpc.engine.VllmEngine")
    assert health.Check(check, timeout=PATIENCE_S).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"kv_transfer_params_json": "{}"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"sampling": {"n": 2}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"sampling": {"regex": "a+"}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"sampling": {"top_p": 5.0}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"prompt": {"tokenized": {"input_ids": [2**32 - 1]}}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"prompt": {}}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_vllm_grpc_bad_input(
    emulated: ClusterUnderTest, vllm_stub: Any, fields: dict[str, Any], status: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(vllm_stub.Generate(vllm_request("bad", **fields)))
    assert caught.value.code() is status
    list(vllm_stub.Generate(vllm_request("")))
