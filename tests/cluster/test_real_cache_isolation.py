"""Real vLLM behind a router that keeps prefix caches apart: tenants find what they have sent, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.another_router import another_router
from tests.support.cluster import Answer, ClusterUnderTest, greedy
from tests.support.text import text_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TENANTS = {"friend": {"cache_group": "friends"}, "guest": {"cache_group": "friends"}}


@pytest.fixture(scope="module")
def separating(real: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    environment = {
        "SLOS_SERVE_ROUTER__ID": "separating",
        "SLOS_SERVE_ROUTER__CACHE_ISOLATION": "tenant",
        "SLOS_SERVE_TENANTS": json.dumps(TENANTS),
    }
    with another_router(real, tmp_path_factory.mktemp("separating"), environment) as cluster:
        yield cluster


def sent(cluster: ClusterUnderTest, prompt: list[int], tenant: str) -> Answer:
    request = greedy(prompt, 6)
    request.tenant = tenant
    return cluster.generate(request)


def cached(answer: Answer) -> int:
    assert answer.finished is not None
    return answer.finished.cached_tokens


def test_what_a_tenant_has_sent_is_found_by_it_and_its_group_alone(
    separating: ClusterUnderTest, model_dir: Path
) -> None:
    prompt = text_tokens(model_dir, 38_000)[37_500:37_800]
    first = sent(separating, prompt, "a")
    again = sent(separating, prompt, "a")
    assert cached(first) == 0
    assert cached(again) == len(prompt) // 32 * 32
    stranger = sent(separating, prompt, "b")
    assert cached(stranger) == 0
    assert first.token_ids == again.token_ids == stranger.token_ids
    assert cached(sent(separating, prompt, "friend")) == 0
    assert cached(sent(separating, prompt, "guest")) == len(prompt) // 32 * 32
