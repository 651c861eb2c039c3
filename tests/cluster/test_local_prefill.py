"""Decode workers that compute prompts themselves, with emulated engines."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from slos_serve.v1 import inference_pb2
from tests.cluster.conftest import EMULATED
from tests.support.cluster import ClusterUnderTest, cluster_under_test, greedy
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster

PROMPT = list(range(20, 420))


@contextmanager
def running(directory: Path, prefill: int, decode: int) -> Iterator[ClusterUnderTest]:
    config = directory / "cluster.toml"
    text = EMULATED.format(
        model=write_tiny_model(directory / "tiny"),
        run_dir=directory / "run",
        prefill=prefill,
        decode=decode,
        patience_s=60.0,
    )
    config.write_text(text.replace("[router]\n", "[router]\nlocal_prefill = true\n"))
    with cluster_under_test(config) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    with running(tmp_path_factory.mktemp("elastic"), prefill=1, decode=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def colocated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    """No prefill worker at all."""
    with running(tmp_path_factory.mktemp("colocated"), prefill=0, decode=2) as cluster:
        yield cluster


def request(index: int) -> inference_pb2.GenerateRequest:
    message = greedy(PROMPT, 12, request_id=f"elastic-{index}")
    message.contract.stages.add().prefill.ttft_s = 5.0
    message.contract.stages.add().decode.tpot_s = 0.5
    return message


def test_what_is_prefilled_locally_says_the_same_and_hands_nothing_over(elastic: ClusterUnderTest) -> None:
    local, remote = [], []
    streams = [elastic.stub.Generate(request(index), timeout=60) for index in range(24)]
    for stream in streams:
        responses = list(stream)
        admission, finished = responses[0].admission, responses[-1].finished
        tokens = [token_id for response in responses for token_id in response.tokens.token_ids]
        assert admission.verdict == inference_pb2.VERDICT_GUARANTEED
        assert finished.completion_tokens == len(tokens) == 12
        if admission.prefill_worker_id == admission.decode_worker_id:
            assert finished.phases.handover_s == 0
            assert not finished.HasField("kv_pull")
            local.append(tokens)
        else:
            assert finished.kv_pull.bytes > 0
            remote.append(tokens)
    assert local, "the decode worker has slack"
    assert all(tokens == local[0] for tokens in local + remote)
    elastic.wait_empty()


def test_a_lost_worker_does_not_lose_what_it_prefilled_locally(elastic: ClusterUnderTest) -> None:
    stream = elastic.stub.Generate(greedy(PROMPT, 200), timeout=90)
    first = next(iter(stream)).admission
    elastic.kill(first.decode_worker_id)
    elastic.start_again(first.decode_worker_id)
    rest = list(stream)
    assert rest[-1].finished.completion_tokens == 200
    elastic.wait_ready(2)
    elastic.wait_empty()


def test_a_cluster_without_prefill_workers_keeps_what_it_guarantees(colocated: ClusterUnderTest) -> None:
    streams = [colocated.stub.Generate(request(index), timeout=60) for index in range(24)]
    workers = set()
    for stream in streams:
        responses = list(stream)
        admission, finished = responses[0].admission, responses[-1].finished
        assert admission.verdict == inference_pb2.VERDICT_GUARANTEED
        assert admission.prefill_worker_id == admission.decode_worker_id
        workers.add(admission.decode_worker_id)
        assert finished.completion_tokens == 12
        assert finished.achieved.kept
        assert not finished.HasField("kv_pull")
    assert len(workers) == 2
    assert colocated.state().ready
    best_effort = list(colocated.stub.Generate(greedy(PROMPT, 12), timeout=60))
    assert best_effort[-1].finished.completion_tokens == 12
    colocated.wait_empty()


def test_without_prefill_workers_a_stream_goes_on_where_another_decode_worker_is(colocated: ClusterUnderTest) -> None:
    undisturbed = [
        token for r in colocated.stub.Generate(greedy(PROMPT, 100), timeout=60) for token in r.tokens.token_ids
    ]
    stream = colocated.stub.Generate(greedy(PROMPT, 100), timeout=90)
    first = next(iter(stream)).admission
    colocated.kill(first.decode_worker_id)
    tokens = [token for response in stream for token in response.tokens.token_ids]
    assert tokens == undisturbed
    colocated.start_again(first.decode_worker_id)
    colocated.wait_ready(2)
    colocated.wait_empty()
