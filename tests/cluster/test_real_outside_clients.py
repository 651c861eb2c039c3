"""The same outside clients on real engines: SmolLM2 in vLLM, one prefill and one decode worker.

How fast it is says the machine; that every request is complete, carries its contract and learns its verdict is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import openai
import pytest

from tests.support.http_door import PATIENCE_S, http_door
from tests.support.outside_clients import Offer, guidellm, inference_perf, vllm_bench_serve
from tests.support.reflection import generate_by_reflection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai.types.chat import ChatCompletionMessageParam

    from tests.support.cluster import ClusterUnderTest
    from tests.support.http_door import HttpDoor

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MODEL = "SmolLM2-135M-Instruct"
CAPITAL: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
CONTRACT = {"x-slo-ttft-ms": "20000", "x-slo-tpot-ms": "5000"}


@pytest.fixture(scope="module")
def real_door(real: ClusterUnderTest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpDoor]:
    with http_door(tmp_path_factory.mktemp("real-door"), [real.address], str(model_dir), name=MODEL) as running:
        yield running


@pytest.fixture
def client(real: ClusterUnderTest, real_door: HttpDoor) -> openai.OpenAI:
    real.wait_ready(2)
    return openai.OpenAI(base_url=f"{real_door.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)


@pytest.fixture
def offer(real: ClusterUnderTest, real_door: HttpDoor, model_dir: Path) -> Offer:
    real.wait_ready(2)
    return Offer(real_door.url, MODEL, model_dir, prompts=8, rate_rps=2, prompt_tokens=50, output_tokens=8)


def test_openai_whole_and_streamed_answers_are_the_same_text(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    whole = client.chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=24, temperature=0)
    text = whole.choices[0].message.content
    assert text is not None
    assert "Paris" in text
    response = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=CAPITAL,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=CONTRACT,
    )
    assert response.headers["x-slo-verdict"] == "guaranteed"
    chunks = list(response.parse())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].model_extra is not None
    print(text, response.headers["x-slo-predicted-ttft-ms"], chunks[-1].model_extra["slo"])
    assert chunks[-1].model_extra["slo"]["verdict"] == "guaranteed"
    assert chunks[-1].model_extra["slo"]["phases_ms"]["handover"] > 0


def test_vllm_bench_serve(offer: Offer, tmp_path: Path) -> None:
    result = vllm_bench_serve(offer, tmp_path)
    assert (result["completed"], result["failed"]) == (offer.prompts, 0)
    assert result["total_output_tokens"] == offer.prompts * offer.output_tokens
    assert result["request_goodput"] > 0


def test_inference_perf(offer: Offer, tmp_path: Path) -> None:
    goodput = inference_perf(offer, tmp_path)["successes"]["goodput_metrics"]
    assert goodput["total_requests"] == offer.prompts
    assert goodput["good_requests"] > 0


def test_guidellm(offer: Offer, tmp_path: Path) -> None:
    assert "Benchmarking complete" in guidellm(offer, tmp_path)


def test_a_client_that_knows_only_reflection(real: ClusterUnderTest) -> None:
    real.wait_ready(2)
    stages = [{"prefill": {"ttft_s": 20.0}}, {"decode": {"tpot_s": 5.0}}]
    with grpc.insecure_channel(real.address) as channel:
        answers = generate_by_reflection(channel, "The capital of France is", 8, contract={"stages": stages})
    assert answers[0].admission.verdict == 1
    assert answers[-1].finished.completion_tokens == 8
    real.wait_empty()
