"""The application against a scripted router: answers, streams, and every error by its status."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource

from gateway.app import build_app
from services.config.settings import GatewaySettings
from services.model.directory import ModelDirectory
from services.rpc import errors as server
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces
from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2
from tests.support.tiny_model import MAX_CONTEXT_TOKENS, VOCABULARY_SIZE, write_tiny_model
from tests.unit.client.scripted import Script, admission, finished, scripted, tokens, whole_stream

LIMIT_BYTES = 10_000


@asynccontextmanager
async def door(*routers: str, model: ModelDirectory | None = None) -> AsyncIterator[httpx.AsyncClient]:
    meters, traces = Meters(NoOpMeterProvider()), Traces(Resource.get_empty(), 0.0, None)
    app = build_app(GatewaySettings(max_body_bytes=LIMIT_BYTES), routers, model, meters, traces)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client,
    ):
        yield client


async def post(script: Script, body: dict[str, Any], path: str = "/v1/completions", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with scripted(script) as router:
        async with door(router.address) as client:
            return await client.post(path, json=body, headers=named)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_completion_whole() -> None:
    response = await post(whole_stream(), {"prompt": "hi"}, x_request_id="mine")
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"].startswith("cmpl-mine-")
    assert answer["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "text": "Hello world",
        "logprobs": None,
        "finish_reason": "length",
    }
    assert answer["usage"]["total_tokens"] == 5
    assert answer["slo"]["verdict"] == "guaranteed"
    assert answer["slo"]["tpot_ms"] == 20
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["x-slo-verdict"] == "guaranteed"
    assert response.headers["x-slo-achieved-ttft-ms"] == "100.0"


async def test_a_chat_streamed() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    response = await post(whole_stream(), body, "/v1/chat/completions")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-slo-verdict"] == "guaranteed"
    chunks = events(response)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "Hello"},
        {"content": " world"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["slo"]["kept"] is True
    assert all("slo" not in chunk and "usage" not in chunk for chunk in chunks[:-1])


async def test_usage_comes_last_and_only_if_asked_for() -> None:
    body = {"prompt": "hi", "stream": True, "stream_options": {"include_usage": True}}
    chunks = events(await post(whole_stream(), body))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert chunks[-1]["slo"]["ttft_ms"] == 100
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


async def test_what_is_asked_reaches_the_router() -> None:
    with scripted(whole_stream()) as router:
        async with door(router.address) as client:
            await client.post(
                "/v1/completions",
                json={"prompt": [5, 6], "model": "m", "ignore_eos": True, "slo": {"tpot_ms": 50, "value": 2.0}},
                headers=[
                    (b"x-slo-ttft-ms", b"250"),
                    (b"X-LLM-D-SLO-TPOT-MS", b"90"),
                    (b"x-slo-profile", b"coder"),
                    (b"x-slo-on-overload", b"refuse"),
                    (b"x-slo-application", b"chat"),
                    (b"x-tenant-id", b"acme"),
                    (b"traceparent", b"00-11111111111111111111111111111111-2222222222222222-01"),
                ],
            )
    request, metadata = router.requests[0], router.metadata[0]
    assert list(request.token_ids.ids) == [5, 6]
    assert request.sampling.max_tokens == 16, "OpenAI's default"
    assert request.sampling.ignore_eos
    assert request.model == "m"
    body = contract_pb2.Contract(value=2.0, stages=[contract_pb2.Stage(decode=contract_pb2.DecodeStage(tpot_s=0.05))])
    assert request.contract == body, "headers are for the router to read"
    assert {name: value for name, value in metadata.items() if name.startswith(("x-slo", "x-llm-d"))} == {
        "x-slo-ttft-ms": "250",
        "x-llm-d-slo-tpot-ms": "90",
        "x-slo-profile": "coder",
        "x-slo-on-overload": "refuse",
        "x-slo-application": "chat",
    }
    assert metadata["x-tenant-id"] == "acme", "the router names the header that the client wrote, if it refuses it"
    assert metadata["traceparent"] == "00-11111111111111111111111111111111-2222222222222222-01"
    assert metadata["x-request-id"] == request.request_id


UNFIT_ID = "must be 1 to 96 printable ASCII characters without blanks"
UNKNOWN_HEADER = (
    "no such header; known: x-slo-profile, x-slo-ttft-ms, x-llm-d-slo-ttft-ms, x-slo-tpot-ms, x-llm-d-slo-tpot-ms, "
    "x-slo-on-overload, x-slo-application"
)


@pytest.mark.parametrize(
    ("slo", "headers", "param", "message"),
    [
        ({"ttft_ms": -5}, {}, "slo.ttft_ms", "must be finite and positive; got -5.0"),
        ({"tpot_ms": 5, "stages": [{"tpot_ms": 5}]}, {}, "slo.tpot_ms", "give tpot_ms or stages, not both"),
        ({}, {"x-slo-profile": "codé".encode("latin-1")}, "x-slo-profile", "must be printable ASCII"),
        ({}, {"x-tenant-id": "acmé".encode("latin-1")}, "x-tenant-id", "must be printable ASCII"),
        ({}, {"x-tenant-id": "acmé".encode()}, "x-tenant-id", "must be printable ASCII"),
        ({}, {"x-tenant-id": "t" * 257}, "x-tenant-id", "at most 256 characters; got 257"),
        ({}, {"x-slo-application": "chät".encode()}, "x-slo-application", "must be printable ASCII"),
        ({}, {"x-request-id": "é".encode()}, "x-request-id", UNFIT_ID),
        ({}, {"x-request-id": ""}, "x-request-id", UNFIT_ID),
        ({}, {"x-request-id": "a b"}, "x-request-id", UNFIT_ID),
        ({}, {"x-request-id": "r" * 97}, "x-request-id", UNFIT_ID),
        ({}, {"x-slo-ttft": "5"}, "x-slo-ttft", UNKNOWN_HEADER),
        ({}, {"X-SLO-Tttft-Ms": "5"}, "x-slo-tttft-ms", UNKNOWN_HEADER),
    ],
)
async def test_a_contract_that_makes_no_sense_never_reaches_a_router(
    slo: dict[str, Any], headers: dict[str, Any], param: str, message: str
) -> None:
    async with door("127.0.0.1:1") as client:
        response = await client.post("/v1/completions", json={"prompt": "hi", "slo": slo}, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_value")
    assert (error["param"], error["message"]) == (param, message)


async def test_a_chat_without_limit_leaves_it_to_the_router() -> None:
    with scripted(whole_stream()) as router:
        async with door(router.address) as client:
            await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert not router.requests[0].sampling.HasField("max_tokens")


async def test_both_names_of_the_limit_of_a_chat() -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    with scripted(whole_stream()) as router:
        async with door(router.address) as client:
            await client.post("/v1/chat/completions", json={**body, "logprobs": True})
            await client.post("/v1/chat/completions", json={**body, "max_completion_tokens": 7})
            await client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 9})
    assert [request.sampling.max_tokens for request in router.requests] == [5, 7, 9]
    assert [request.sampling.HasField("logprobs") for request in router.requests] == [True, False, False]
    assert router.requests[0].sampling.logprobs == 0, "the chosen token alone"


@pytest.mark.parametrize(("served", "name"), [("tiny", "w900 "), ("another", "token_id:900")])
async def test_tokens_are_named_by_the_vocabulary_of_the_model_that_is_served(
    tmp_path: Path, served: str, name: str
) -> None:
    first = tokens(0, "a")
    first.tokens.logprobs.add(entries=[sampling_pb2.TokenLogprob(token_id=900, logprob=-2.0, rank=1)])
    model = ModelDirectory(write_tiny_model(tmp_path), "tiny", VOCABULARY_SIZE, MAX_CONTEXT_TOKENS, ())
    with scripted([admission(model=served), first, finished(1)]) as router:
        async with door(router.address, model=model) as client:
            answer = await client.post("/v1/completions", json={"prompt": "x", "logprobs": 0})
    assert answer.json()["choices"][0]["logprobs"]["tokens"] == [name]


async def test_log_probabilities_without_a_tokenizer_name_token_ids() -> None:
    first = tokens(0, "a")
    position = sampling_pb2.TokenLogprobs(
        entries=[
            sampling_pb2.TokenLogprob(token_id=9, logprob=-2.0, rank=3),
            sampling_pb2.TokenLogprob(token_id=7, logprob=-0.5, rank=1),
            sampling_pb2.TokenLogprob(token_id=8, logprob=-1.0, rank=2),
        ]
    )
    first.tokens.logprobs.append(position)
    script: Script = [admission(), first, finished(1)]
    shown = (await post(script, {"prompt": "x", "logprobs": 1})).json()["choices"][0]["logprobs"]
    assert shown == {
        "tokens": ["token_id:9"],
        "token_logprobs": [-2.0],
        "top_logprobs": [{"token_id:9": -2.0, "token_id:7": -0.5}],
        "text_offset": [0],
    }
    body = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 2}
    content = (await post(script, body, "/v1/chat/completions")).json()["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "token_id:9"
    assert [item["token"] for item in content[0]["top_logprobs"]] == ["token_id:7", "token_id:8"]


@pytest.mark.parametrize(
    ("asked", "counts"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)],
)
async def test_a_chat_asks_for_as_many_log_probabilities_as_its_client(
    asked: dict[str, Any], counts: int | None
) -> None:
    with scripted(whole_stream()) as router:
        async with door(router.address) as client:
            body = {"messages": [{"role": "user", "content": "hi"}], **asked}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    (request,) = router.requests
    sent = request.sampling.logprobs if request.sampling.HasField("logprobs") else None
    assert sent == counts


FAILURES: dict[str, tuple[server.RequestError, int, str, str | None]] = {
    "refused": (
        server.OverloadedError("full", retry_after_s=1.2, metadata={"binding": "KV_MEMORY"}),
        429,
        "contract_refused",
        None,
    ),
    "impossible TTFT": (
        server.ImpossibleContractError("no", field="contract.stages[0].prefill"),
        400,
        "impossible_contract",
        "slo.ttft_ms",
    ),
    "impossible TPOT": (
        server.ImpossibleContractError("no", field="contract.stages"),
        400,
        "impossible_contract",
        "slo.stages",
    ),
    "header": (server.InvalidRequestError("no", field="x-slo-ttft-ms"), 400, "invalid_value", "x-slo-ttft-ms"),
    "profile": (server.InvalidRequestError("no", field="contract.profile"), 400, "invalid_value", "slo.profile"),
    "invalid": (server.InvalidRequestError("no", field="sampling.top_p"), 400, "invalid_value", "top_p"),
    "prompt too long": (server.InvalidRequestError("no", field="text"), 400, "invalid_value", "prompt"),
    "unknown role": (
        server.InvalidRequestError("no", field="chat.messages[0].role"),
        400,
        "invalid_value",
        "messages[0].role",
    ),
    "unknown model": (server.UnknownModelError("no", field="model"), 404, "model_not_found", "model"),
    "no worker": (server.NoWorkerError("none", retry_after_s=1.0), 503, "no_worker", None),
    "draining": (server.DrainingError("bye", retry_after_s=1.0), 503, "draining", None),
    "engine": (server.EngineFailureError("broken"), 500, "engine_failure", None),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", FAILURES)
async def test_an_error_has_its_status_also_when_streaming(case: str, *, stream: bool) -> None:
    error, status, code, param = FAILURES[case]
    response = await post([error], {"prompt": "hi", "stream": stream})
    assert response.status_code == status
    body = response.json()["error"]
    assert body["code"] == code
    assert body["param"] == param
    assert body["message"] == error.detail
    if error.retry_after_s is not None:
        assert int(response.headers["retry-after"]) >= error.retry_after_s
        assert float(response.headers["retry-after-ms"]) >= error.retry_after_s * 1e3
    if case == "refused":
        assert response.headers["x-slo-binding"] == "kv_memory"
        assert response.headers["x-slo-verdict"] == "refused"


async def test_a_stream_that_breaks_says_so_before_it_ends() -> None:
    script: Script = [admission(), tokens(0, "a"), server.WorkerLostError("gone")]
    chunks = events(await post(script, {"prompt": "hi", "stream": True}))
    assert chunks[0]["choices"][0]["text"] == "a"
    assert chunks[1]["error"]["code"] == "worker_lost"


async def test_a_text_that_was_cut_short_is_no_success() -> None:
    aborted = inference_pb2.GenerateResponse(finished=inference_pb2.Finished(reason=sampling_pb2.FINISH_REASON_ABORT))
    response = await post([admission(), tokens(0, "a"), aborted], {"prompt": "hi"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "aborted"


@pytest.mark.parametrize(("served", "length"), [("tiny", MAX_CONTEXT_TOKENS), ("another", None)])
async def test_the_length_of_a_model_is_known_if_it_is_the_one_on_this_machine(
    tmp_path: Path, served: str, length: int | None
) -> None:
    model = ModelDirectory(write_tiny_model(tmp_path), "tiny", VOCABULARY_SIZE, MAX_CONTEXT_TOKENS, ())
    with scripted() as router:
        router.model = served
        async with door(router.address, model=model) as client:
            (entry,) = (await client.get("/v1/models")).json()["data"]
    assert (entry["id"], entry.get("max_model_len")) == (served, length)


async def test_no_router_there() -> None:
    async with door("127.0.0.1:1") as client:
        for response in (await client.post("/v1/completions", json={"prompt": "x"}), await client.get("/v1/models")):
            assert response.status_code == 502
            assert response.json()["error"]["code"] == "router_unreachable"


async def test_a_body_over_the_limit_is_refused_whatever_it_announces() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1000
            yield b"x" * 1000

    async with door("127.0.0.1:1") as client:
        announced = await client.post("/v1/completions", content=b"x" * (LIMIT_BYTES + 1))
        streamed = await client.post("/v1/completions", content=endless())
    assert announced.status_code == streamed.status_code == 413
    assert streamed.json()["error"]["code"] == "body_too_large"
    assert read <= LIMIT_BYTES + 2000, "what is over the limit is not read"


async def test_every_answer_names_the_request_and_its_trace() -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    traceparent = f"00-{trace_id}-b7ad6b7169203331-01"
    headers = {"traceparent": traceparent, "tracestate": "a=1", "x-request-id": "mine"}
    with scripted(whole_stream()) as router:
        async with door(router.address) as client:
            answer = await client.post("/v1/completions", json={"prompt": "hi"}, headers=headers)
    (seen,) = router.metadata
    assert (answer.headers["x-request-id"], answer.headers["x-trace-id"]) == ("mine", trace_id)
    assert (seen["traceparent"], seen["tracestate"]) == (traceparent, "a=1"), "nothing of ours lies in between"
    async with door("127.0.0.1:1") as client:
        for path in ("/health", "/nowhere"):
            answer = await client.get(path)
            assert answer.headers["x-request-id"].startswith("http-")
            assert len(answer.headers["x-trace-id"]) == 32


async def test_unknown_paths_and_methods() -> None:
    async with door("127.0.0.1:1") as client:
        assert (await client.get("/v1/embeddings")).json()["error"]["type"] == "invalid_request_error"
        wrong = await client.get("/v1/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
