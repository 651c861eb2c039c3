"""Real vLLM: decode workers that compute prompts themselves say what one stock engine says.

In float32, for the reason given in `test_real_text`.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

import pytest

from slos_serve.v1 import inference_pb2
from tests.support import compared_prompts
from tests.support.another_router import another_router
from tests.support.cluster import Answer, ClusterUnderTest, greedy
from tests.support.compared_prompts import TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROUNDS = 4


@pytest.fixture(scope="module")
def prompts(model_dir: Path) -> list[list[int]]:
    return compared_prompts.local(model_dir)


@pytest.fixture(scope="module")
def elastic(
    stock: dict[str, list[list[int]]], real: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterUnderTest]:
    """The workers of the real cluster behind a router that lets decode workers prefill."""
    real.wait_ready(2)
    options = {"SLOS_SERVE_ROUTER__LOCAL_PREFILL": "true"}
    with another_router(real, tmp_path_factory.mktemp("real-elastic"), options) as cluster:
        yield cluster


def test_what_is_prefilled_locally_says_the_same(
    elastic: ClusterUnderTest, stock: dict[str, list[list[int]]], prompts: list[list[int]]
) -> None:
    """In a crowd, so that chunks of prompts share steps with decodes; until there were prompts of either kind."""
    local, remote = 0, 0
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(ROUNDS):
            answers: list[Answer] = list(pool.map(lambda prompt: elastic.generate(_loosely(prompt)), prompts))
            assert [answer.token_ids for answer in answers] == stock["local"]
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
