"""vLLM's protocol into ours and back."""

from __future__ import annotations

from typing import Any

import pytest

from services.rpc.errors import InvalidRequestError
from slos_serve.v1 import inference_pb2, sampling_pb2

pytest.importorskip("smg_grpc_proto", reason="the protocol of vLLM's gRPC server")

from smg_grpc_proto import vllm_engine_pb2

from router.api.vllm_endpoint import Translation, to_inference


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
