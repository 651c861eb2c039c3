"""vLLM's protocol into ours and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest

from services.identity.principal import Principal, Role
from services.rpc.caller import act_for
from services.rpc.errors import InvalidRequestError, UnknownRequestError
from slos_serve.v1 import inference_pb2, sampling_pb2

pytest.importorskip("smg_grpc_proto", reason="the protocol of vLLM's gRPC server")

from smg_grpc_proto import vllm_engine_pb2

from router.api.vllm_endpoint import ServedModel, Translation, VllmEndpoint, to_inference


def request(**fields: Any) -> Any:
    return vllm_engine_pb2.GenerateRequest(request_id="r", **{"text": "hi", **fields})


def test_what_proto3_leaves_at_zero_is_unset() -> None:
    sampling = to_inference(request(sampling_params={"max_tokens": 3})).sampling
    assert not sampling.HasField("temperature")
    assert not sampling.HasField("top_p")
    assert not sampling.HasField("repetition_penalty")
    assert not sampling.HasField("seed")
    assert sampling.max_tokens == 3
    greedy = to_inference(
        request(sampling_params={"temperature": 0.0, "top_p": 0.5, "stop": ["x"], "seed": 7})
    ).sampling
    assert greedy.HasField("temperature")
    assert (greedy.temperature, greedy.top_p, list(greedy.stop), greedy.seed) == (0.0, 0.5, ["x"], 7)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kv_transfer_params_json": "{}"}, "kv_transfer_params_json"),
        ({"data_parallel_rank": 0}, "data_parallel_rank"),
        ({"media_refs": {}}, "media_refs"),
        ({"sampling_params": {"n": 2}}, "sampling_params.n"),
        ({"sampling_params": {"json_schema": "{}"}}, "sampling_params.constraint"),
        ({"sampling_params": {"prompt_logprobs": 1}}, "sampling_params.prompt_logprobs"),
        ({"sampling_params": {"max_tokens": 2**31}}, "sampling_params.max_tokens"),
        ({"sampling_params": {"stop_token_ids": [2**31]}}, "sampling_params.stop_token_ids"),
        ({"text": None, "tokenized": {"input_ids": [2**31]}}, "tokenized.input_ids"),
    ],
)
def test_what_is_not_done_is_refused_by_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        to_inference(request(**fields))
    assert caught.value.field == field


def tokens(index: int, *token_ids: int) -> inference_pb2.GenerateResponse:
    entry = sampling_pb2.TokenLogprob
    positions = [
        sampling_pb2.TokenLogprobs(
            entries=[
                entry(token_id=token_id, logprob=-1.0, rank=2),
                entry(token_id=7, logprob=-0.5, rank=1),
                entry(token_id=token_id, logprob=-1.0, rank=2),
            ]
        )
        for token_id in token_ids
    ]
    chunk = inference_pb2.TokenChunk(index=index, token_ids=token_ids, logprobs=positions)
    return inference_pb2.GenerateResponse(tokens=chunk)


def finished(matched_stop: str) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        finished=inference_pb2.Finished(
            reason=sampling_pb2.FINISH_REASON_STOP, matched_stop=matched_stop, prompt_tokens=4, completion_tokens=3
        )
    )


def answers(asked: Any, matched_stop: str) -> list[Any]:
    translation = Translation(asked)
    said = [
        inference_pb2.GenerateResponse(admission=inference_pb2.Admission(prompt_tokens=4)),
        tokens(0, 10, 11),
        tokens(2, 12),
        inference_pb2.GenerateResponse(tokens=inference_pb2.TokenChunk(index=3, text="rest")),
        finished(matched_stop),
    ]
    return [message for response in said for message in translation.take(response)]


def test_a_stream() -> None:
    likeliest = answers(request(stream=True, sampling_params={"logprobs": 1}), "")[0].chunk.output_logprobs
    assert [list(position.token_ids) for position in likeliest.top_logprobs] == [[7], [7]]
    first, second, last = answers(request(stream=True, sampling_params={"logprobs": 2, "stop": ["x"]}), "x")
    assert list(first.chunk.token_ids) == [10, 11]
    assert (first.chunk.prompt_tokens, second.chunk.completion_tokens) == (4, 3)
    assert list(first.chunk.output_logprobs.token_logprobs) == [-1.0, -1.0]
    assert list(first.chunk.output_logprobs.top_logprobs[0].token_ids) == [7, 10]
    assert last.complete.finish_reason == "stop"
    assert last.complete.matched_stop_str == "x"
    assert not last.complete.HasField("output_logprobs")


def test_an_answer_at_once() -> None:
    (whole,) = answers(request(sampling_params={"logprobs": 0}), "2")
    assert list(whole.complete.output_ids) == [10, 11, 12]
    assert list(whole.complete.output_logprobs.token_ids) == [10, 11, 12]
    assert whole.complete.matched_token_id == 2


class Call:
    """The server's side of one call."""

    def __init__(self) -> None:
        self.initial: tuple[tuple[str, str], ...] = ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:40000"

    async def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.initial = metadata

    async def abort(self, code: grpc.StatusCode, detail: str, _metadata: object) -> None:
        raise RuntimeError(f"{code.name} {detail}")


class Cluster:
    """The router behind the endpoint; its clock starts at 100 s."""

    def __init__(self, verdict: inference_pb2.Verdict.ValueType = inference_pb2.VERDICT_GUARANTEED) -> None:
        self.now_s = 100.0
        self.problem = ""
        self.verdict = verdict
        self.asked: list[inference_pb2.GenerateRequest] = []
        self.cancelled: list[str] = []

    def endpoint(self) -> VllmEndpoint:
        return VllmEndpoint(
            generate=self.generate,
            cancel=self.cancel,
            missing=lambda: self.problem,
            running=lambda: 3,
            model=ServedModel("tiny", "/models/tiny", 1024, 8192, (2, 7)),
            clock=lambda: self.now_s,
        )

    async def generate(
        self, message: inference_pb2.GenerateRequest, _context: object
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.asked.append(message)
        left = inference_pb2.RateLimit(quota="requests_per_s", limit=5.0, remaining=3.0, reset_s=0.75)
        admission = inference_pb2.Admission(
            request_id="mine", verdict=self.verdict, prompt_tokens=4, rate_limits=[left]
        )
        yield inference_pb2.GenerateResponse(admission=admission)
        yield tokens(0, 10)
        yield finished("")

    async def cancel(self, request_id: str, _peer: str) -> None:
        self.cancelled.append(request_id)
        match request_id:
            case "gone":
                raise UnknownRequestError("gone")
            case "":
                raise InvalidRequestError("no id")
            case "broken":
                raise OSError("broken")


LEFT = (
    ("x-ratelimit-limit-requests", "5"),
    ("x-ratelimit-remaining-requests", "3"),
    ("x-ratelimit-reset-requests", "750ms"),
)


@pytest.mark.parametrize(
    ("verdict", "name"),
    [(inference_pb2.VERDICT_GUARANTEED, "guaranteed"), (inference_pb2.VERDICT_BEST_EFFORT, "best_effort")],
)
async def test_the_verdict_comes_before_the_tokens(verdict: inference_pb2.Verdict.ValueType, name: str) -> None:
    cluster, call = Cluster(verdict), Call()
    said = [message async for message in cluster.endpoint().Generate(request(stream=True), cast("Any", call))]
    assert call.initial == (("x-slo-verdict", name), ("x-request-id", "mine"), *LEFT)
    assert [message.WhichOneof("response") for message in said] == ["chunk", "complete"]
    assert [(message.request_id, message.text) for message in cluster.asked] == [("r", "hi")]


async def test_a_request_that_is_not_served_never_reaches_the_router() -> None:
    cluster = Cluster()
    with pytest.raises(RuntimeError, match=r"INVALID_ARGUMENT sampling_params\.n: one output a request"):
        await anext(aiter(cluster.endpoint().Generate(request(sampling_params={"n": 2}), cast("Any", Call()))))
    assert not cluster.asked


async def test_an_abort_ends_each_request_once_and_is_silent_about_unknown_ones() -> None:
    cluster = Cluster()
    message = vllm_engine_pb2.AbortRequest(request_ids=["a", "gone", "a", ""])
    await cluster.endpoint().Abort(message, cast("Any", Call()))
    assert cluster.cancelled == ["a", "gone", ""]
    with pytest.raises(OSError, match="broken"):
        await cluster.endpoint().Abort(vllm_engine_pb2.AbortRequest(request_ids=["a", "broken"]), cast("Any", Call()))


async def test_an_abort_names_a_bounded_number_of_requests() -> None:
    cluster = Cluster()
    message = vllm_engine_pb2.AbortRequest(request_ids=[f"r{index}" for index in range(1025)])
    with pytest.raises(RuntimeError, match="INVALID_ARGUMENT request_ids: at most 1024; got 1025"):
        await cluster.endpoint().Abort(message, cast("Any", Call()))
    assert cluster.cancelled == []


async def test_health_says_what_is_missing() -> None:
    cluster, call = Cluster(), cast("Any", Call())
    well = await cluster.endpoint().HealthCheck(vllm_engine_pb2.HealthCheckRequest(), call)
    assert (well.healthy, well.message) == (True, "Health")
    cluster.problem = "no decode worker is connected"
    ill = await cluster.endpoint().HealthCheck(vllm_engine_pb2.HealthCheckRequest(), call)
    assert (ill.healthy, ill.message) == (False, "no decode worker is connected")


async def test_the_cluster_describes_itself_as_one_engine() -> None:
    cluster, call = Cluster(), cast("Any", Call())
    endpoint = cluster.endpoint()
    model = await endpoint.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest(), call)
    assert (model.served_model_name, model.model_path, model.tokenizer_path) == ("tiny", "/models/tiny", "/models/tiny")
    assert (model.max_context_length, model.max_req_input_len, model.vocab_size) == (8192, 8192, 1024)
    assert list(model.eos_token_ids) == [2, 7]
    assert model.is_generation
    cluster.now_s = 160.0
    server = await endpoint.GetServerInfo(vllm_engine_pb2.GetServerInfoRequest(), call)
    assert (server.active_requests, server.uptime_seconds, server.last_receive_timestamp) == (3, 60.0, 0.0)
    assert (server.server_type, server.data_parallel_size) == ("slos-serve", 1)
    before_s = time.time()
    await anext(aiter(endpoint.Generate(request(), call)))
    server = await endpoint.GetServerInfo(vllm_engine_pb2.GetServerInfoRequest(), call)
    assert before_s <= server.last_receive_timestamp <= time.time()


async def test_a_client_is_told_neither_where_the_model_lies_nor_how_busy_others_are() -> None:
    cluster, call = Cluster(), cast("Any", Call())
    endpoint = cluster.endpoint()
    cluster.now_s = 160.0
    await anext(aiter(endpoint.Generate(request(), call)))

    async def told(role: Role) -> tuple[str, str, str, int, float, float]:
        act_for(Principal("key", "acme", frozenset({role})))
        model = await endpoint.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest(), call)
        server = await endpoint.GetServerInfo(vllm_engine_pb2.GetServerInfoRequest(), call)
        assert (model.vocab_size, server.server_type) == (1024, "slos-serve")
        names = (model.served_model_name, model.model_path, model.tokenizer_path)
        return (*names, server.active_requests, server.uptime_seconds, min(1.0, server.last_receive_timestamp))

    for role, expected in (
        (Role.CLIENT, ("tiny", "tiny", "tiny", 0, 0.0, 0.0)),
        (Role.ADMIN, ("tiny", "/models/tiny", "/models/tiny", 3, 60.0, 1.0)),
    ):
        # Each in a task of its own, as calls are.
        assert await asyncio.create_task(told(role)) == expected


def test_every_sampling_parameter_arrives_under_its_own_name() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "presence_penalty": -0.5,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
        "max_tokens": 30,
        "min_tokens": 3,
        "seed": 9,
        "stop": ["x"],
        "stop_token_ids": [20],
        "ignore_eos": True,
        "skip_special_tokens": True,
        "logit_bias": {20: -1.0},
        "logprobs": 5,
        "include_stop_str_in_output": True,
    }
    assert to_inference(request(sampling_params=fields)).sampling == sampling_pb2.SamplingParams(**fields)


def test_token_ids_are_taken_up_to_the_largest_of_the_protocol() -> None:
    message = to_inference(request(text=None, tokenized={"input_ids": [1, 2**31 - 1]}))
    assert list(message.token_ids.ids) == [1, 2**31 - 1]
    empty = to_inference(request(text=None, tokenized={}))
    assert empty.WhichOneof("input") == "token_ids"


@pytest.mark.parametrize("name", ["top_k", "max_tokens", "min_tokens"])
def test_numbers_beyond_the_protocol_are_refused(name: str) -> None:
    assert getattr(to_inference(request(sampling_params={name: 2**31 - 1})).sampling, name) == 2**31 - 1
    with pytest.raises(InvalidRequestError) as caught:
        to_inference(request(sampling_params={name: 2**31}))
    assert caught.value.field == f"sampling_params.{name}"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tokenized": {"input_ids": [5] * 8193}}, "tokenized.input_ids: at most 8192 entries; got 8193"),
        ({"sampling_params": {"stop": [""] * 65}}, "sampling_params.stop: at most 64 entries; got 65"),
        (
            {"sampling_params": {"stop_token_ids": [5] * 1025}},
            "sampling_params.stop_token_ids: at most 1024 entries; got 1025",
        ),
        (
            {"sampling_params": {"logit_bias": dict.fromkeys(range(1025), 1.0)}},
            "sampling_params.logit_bias: at most 1024 entries; got 1025",
        ),
    ],
    ids=["input_ids", "stop", "stop_token_ids", "logit_bias"],
)
async def test_lists_that_are_too_long_are_refused_before_they_are_walked(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], field: str
) -> None:
    monkeypatch.delattr("router.api.vllm_endpoint.to_inference")
    with pytest.raises(RuntimeError, match=f"INVALID_ARGUMENT {field}"):
        await anext(aiter(Cluster().endpoint().Generate(request(**fields), cast("Any", Call()))))
