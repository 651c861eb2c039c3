"""Real vLLM: the cluster's text is that of one stock engine.

In float32: in bfloat16 another batch shape can flip a near-tie, which is the engine's arithmetic and not the hand-over.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

import pytest

from services.model.tokenizer import Tokenizer
from slos_serve.v1 import sampling_pb2
from tests.support import compared_prompts
from tests.support.cluster import Answer, ClusterUnderTest, greedy
from tests.support.compared_prompts import LENGTHS, PENALTIES, TOKENS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def prompts(model_dir: Path) -> list[list[int]]:
    return compared_prompts.alone(model_dir)


@pytest.fixture(scope="module")
def crowd(model_dir: Path) -> list[list[int]]:
    return compared_prompts.crowd(model_dir)


@pytest.mark.parametrize("index", range(len(LENGTHS)), ids=[f"{length} tokens" for length in LENGTHS])
def test_greedy_text_alone_equals_one_engine(
    stock: dict[str, list[list[int]]], real: ClusterUnderTest, prompts: list[list[int]], model_dir: Path, index: int
) -> None:
    answer = real.generate(greedy(prompts[index], TOKENS))
    assert answer.token_ids == stock["alone"][index]
    assert answer.text == Tokenizer(model_dir).decode(stock["alone"][index])
    assert answer.finished is not None
    assert answer.finished.kv_recomputes == 0
    assert answer.finished.kv_pull.bytes > 0, "the KV cache was handed over"


def test_greedy_text_of_sixteen_at_once_equals_one_engine(
    stock: dict[str, list[list[int]]], real: ClusterUnderTest, crowd: list[list[int]]
) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(crowd)) as pool:
        answers: list[Answer] = list(pool.map(lambda prompt: real.generate(greedy(prompt, TOKENS)), crowd))
    assert [answer.token_ids for answer in answers] == stock["crowd"]
    real.wait_empty()


def test_penalties_count_the_token_that_the_prefill_worker_emitted(
    stock: dict[str, list[list[int]]], real: ClusterUnderTest, prompts: list[list[int]]
) -> None:
    for prompt, expected in zip(prompts[2:6], stock["penalties"], strict=True):
        request = greedy(prompt, TOKENS)
        for name, value in PENALTIES.items():
            setattr(request.sampling, name, value)
        assert real.generate(request).token_ids == expected


def test_sampled_text_is_reproducible_by_seed(real: ClusterUnderTest, prompts: list[list[int]]) -> None:
    request = greedy(prompts[4], TOKENS)
    request.sampling.temperature = 1.0
    request.sampling.seed = 1234
    first, second = real.generate(request), real.generate(request)
    assert first.token_ids == second.token_ids
    request.sampling.seed = 1235
    assert real.generate(request).token_ids != first.token_ids


def test_the_model_knows_the_capital_of_france(real: ClusterUnderTest) -> None:
    request = greedy([], 40, ignore_eos=False)
    request.chat.messages.add(role="user", content="What is the capital of France?")
    answer = real.generate(request)
    assert "Paris" in answer.text
    assert answer.finished is not None
    assert answer.finished.reason == sampling_pb2.FINISH_REASON_STOP
    assert answer.admission is not None
    assert not answer.admission.emulated
