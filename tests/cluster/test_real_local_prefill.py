"""Real vLLM: decode workers that compute prompts themselves say what one stock engine says.

In float32, for the reason given in `test_real_text`.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

import pytest

from slos_serve.v1 import inference_pb2
from tests.cluster.conftest import REAL
from tests.support.cluster import Answer, ClusterUnderTest, cluster_under_test, greedy
from tests.support.stock_vllm import stock_answers
from tests.support.text import text_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LENGTHS = (1, 33, 128, 400, 129, 700, 31, 1000, 255, 2000, 64, 600)
TOKENS = 24
ROUNDS = 4


@pytest.fixture(scope="module")
def prompts(model_dir: Path) -> list[list[int]]:
    text = text_tokens(model_dir, 30_000)
    return [text[90 * index : 90 * index + length] for index, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def stock(model_dir: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What one stock vLLM engine says; it runs before the cluster does."""
    sampling = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
    return stock_answers(model_dir, [{"prompts": prompts, "sampling": sampling}])[0]


@pytest.fixture(scope="module")
def elastic(
    model_dir: Path, stock: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterUnderTest]:
    directory = tmp_path_factory.mktemp("real-elastic")
    config = directory / "cluster.toml"
    text = REAL.format(model=model_dir, run_dir=directory / "run")
    config.write_text(
        text.replace("[router]\n", "[router]\nlocal_prefill = true\n").replace(
            "[engine.vllm]\n", "[engine.vllm]\nprefix_caching = false\n"
        )
    )
    with cluster_under_test(config) as cluster:
        yield cluster


def test_what_is_prefilled_locally_says_the_same(
    elastic: ClusterUnderTest, stock: list[list[int]], prompts: list[list[int]]
) -> None:
    """In a crowd, so that chunks of prompts share steps with decodes; until there were prompts of either kind."""
    local, remote = 0, 0
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(ROUNDS):
            answers: list[Answer] = list(pool.map(lambda prompt: elastic.generate(_loosely(prompt)), prompts))
            assert [answer.token_ids for answer in answers] == stock
            for answer in answers:
                assert answer.admission is not None
                assert answer.finished is not None
                if answer.admission.prefill_worker_id == answer.admission.decode_worker_id:
                    assert not answer.finished.HasField("kv_pull")
                    local += 1
                elif answer.finished.HasField("kv_pull"):
                    remote += 1
            if local and remote:
                break
    assert local, "the decode worker has slack"
    elastic.wait_empty()


def _loosely(prompt: list[int]) -> inference_pb2.GenerateRequest:
    """Promised, so that the planner places it; so loosely that it can be on any machine."""
    request = greedy(prompt, TOKENS)
    request.contract.stages.add().prefill.ttft_s = 60.0
    request.contract.stages.add().decode.tpot_s = 5.0
    return request
