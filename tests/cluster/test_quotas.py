"""Quotas of tenants on a cluster with two routers: shared, given back, and kept while Redis is away."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import grpc
import openai
import pytest

from slos_serve.errors import QuotaExceededError, error_of
from slos_serve.v1 import inference_pb2
from tests.cluster.conftest import EMULATED
from tests.support.another_router import another_router
from tests.support.cluster import ClusterUnderTest, cluster_under_test, greedy
from tests.support.eventually import wait_until
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

QUOTAS = """
[tenants.shared]
requests_per_s = 0.001
requests_burst = 10
[tenants.produces]
output_tokens_per_s = 0.001
output_tokens_burst = 100
[tenants.openai]
requests_per_s = 0.001
requests_burst = 3
prompt_tokens_per_s = 0.001
prompt_tokens_burst = 1000
[tenants.busy]
concurrent_requests = 2
[tenants.killed]
concurrent_requests = 1
[tenants.outage]
requests_per_s = 0.001
requests_burst = 8
[tenants.default]
requests_per_s = 0.001
requests_burst = 5
"""
"""Rates that give nothing back while the tests last."""


@pytest.fixture
def routers(redis_server: RedisServer, tmp_path: Path) -> Iterator[tuple[ClusterUnderTest, ClusterUnderTest]]:
    redis_server.start()
    config = tmp_path / "cluster.toml"
    text = EMULATED.format(
        model=write_tiny_model(tmp_path / "tiny"), run_dir=tmp_path / "run", prefill=1, decode=1, patience_s=10.0
    )
    text = text.replace("[redis]", f'[redis]\nurl = "{redis_server.url}"').replace(
        # Redis is slow to answer only because the machine is.
        "[router]",
        "[router]\nquota_patience_s = 10.0",
    )
    text = text.replace("[launcher]", "[launcher]\ngateway = true")
    config.write_text(text + "[gateway]\nport = 0\n" + QUOTAS)
    with (
        cluster_under_test(config) as first,
        another_router(first, tmp_path, {"SLOS_SERVE_ROUTER__ID": "another"}) as second,
    ):
        yield first, second


def message(tenant: str, max_tokens: int = 3) -> inference_pb2.GenerateRequest:
    request = greedy([20, 21, 22], max_tokens)
    request.tenant = tenant
    return request


def quota_of(router: ClusterUnderTest, tenant: str, max_tokens: int = 3) -> str:
    """The quota that refuses a request; empty if it is served."""
    call = router.stub.Generate(message(tenant, max_tokens), timeout=60)
    with contextlib.suppress(grpc.RpcError):
        list(call)
    if call.code() is grpc.StatusCode.OK:
        return ""
    metadata = tuple((name, value) for name, value in call.trailing_metadata() or ())
    failure = error_of(call.code(), call.details() or "", metadata)
    assert isinstance(failure, QuotaExceededError), failure
    return failure.quota


def served(routers: Sequence[ClusterUnderTest], tenants: Sequence[str]) -> int:
    """How many requests of these tenants are served, at the routers in turn."""
    return sum(not quota_of(routers[index % len(routers)], tenant) for index, tenant in enumerate(tenants))


def test_two_routers_keep_one_quota(
    routers: tuple[ClusterUnderTest, ClusterUnderTest], redis_server: RedisServer
) -> None:
    first, second = routers
    assert served(routers, ["shared"] * 16) == 10
    made_up = [f"made-up-{number}" for number in range(20)]
    assert served(routers, made_up) == 5, "names that are only claimed share one account"

    stream = first.stub.Generate(message("produces", max_tokens=400), timeout=60)
    produced = sum(len(response.tokens.token_ids) for response in stream)
    assert produced == 400, "nothing that runs is stopped"
    wait_until(lambda: quota_of(second, "produces") == "output_tokens_per_s", "a debt is known to both")

    _openai_clients_are_told(first)

    # Places are the cluster's, and come back when a client leaves.
    streams = [router.stub.Generate(message("busy", max_tokens=4000), timeout=300) for router in routers]
    for each in streams:
        next(iter(each))
    assert quota_of(first, "busy") == quota_of(second, "busy") == "concurrent_requests"
    streams[0].cancel()
    wait_until(lambda: not quota_of(second, "busy"), "the place is free")
    streams[1].cancel()

    # What a router that is killed held comes back too.
    held = second.stub.Generate(message("killed", max_tokens=4000), timeout=300)
    next(iter(held))
    assert quota_of(first, "killed") == "concurrent_requests"
    process = second.router.process()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not quota_of(first, "killed"), "the place of the dead router is free")


def _openai_clients_are_told(router: ClusterUnderTest) -> None:
    url = f"http://{router.gateway_address}/v1"
    with openai.OpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=60, default_headers={"x-tenant-id": "openai"}
    ) as client:
        raw = client.completions.with_raw_response
        told = [raw.create(model="tiny", prompt="ab", max_tokens=2).headers for _ in range(2)]
        streamed = raw.create(model="tiny", prompt="ab", max_tokens=2, stream=True)
        told.append(streamed.headers)
        assert list(streamed.parse())
        assert [headers["x-ratelimit-remaining-requests"] for headers in told] == ["2", "1", "0"]
        assert all(headers["x-ratelimit-limit-requests"] == "3" for headers in told)
        assert 0 < int(told[-1]["x-ratelimit-remaining-tokens"]) < 1000
        with pytest.raises(openai.RateLimitError) as caught:
            raw.create(model="tiny", prompt="ab", max_tokens=2)
    error = caught.value
    assert error.code == "rate_limit_exceeded"
    headers = error.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].startswith(("49m", "50m0s"))
    assert 900 < int(headers["retry-after"]) <= 1000
    assert 900_000 < int(headers["retry-after-ms"]) <= 1_000_000


def test_without_redis_each_router_has_its_share(
    routers: tuple[ClusterUnderTest, ClusterUnderTest], redis_server: RedisServer
) -> None:
    first, second = routers
    assert served(routers, ["outage"] * 2) == 2
    redis_server.stop()
    assert served([first], ["outage"] * 6) == 3, "half of eight, of which one was used"
    assert served([second], ["outage"] * 6) == 3
    log = first.launcher.settings.launcher.run_dir / "router.log"
    assert log.read_text().count("quotas are kept without Redis, 1/2 of each here") == 1
    redis_server.start()
    wait_until(lambda: "quotas are shared with" in log.read_text(), "Redis is used again")
    assert quota_of(second, "shared") == ""
