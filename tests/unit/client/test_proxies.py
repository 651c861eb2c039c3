"""Proxies that the environment names: routers on this machine and in its network are reached past them."""

from __future__ import annotations

import pytest

from slos_serve import Client, Finished, RetryPolicy, UnreachableError
from slos_serve.connection import is_nearby
from tests.unit.client.scripted import scripted, whole_stream

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_router_on_this_machine_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, variable: str, host: str) -> None:
    monkeypatch.setenv(variable, NOWHERE)
    with scripted(whole_stream()) as router:
        port = router.address.rpartition(":")[2]
        with Client(f"{host}:{port}", retry=RetryPolicy(max_attempts=1)) as client:
            *_, last = client.generate("Hello")
    assert isinstance(last, Finished)


def test_a_router_far_away_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("grpc_proxy", NOWHERE)
    with Client("router.example.com:443", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnreachableError) as raised:
            client.cluster_state(timeout_s=20.0)
        assert "127.0.0.1:9" in raised.value.detail


@pytest.mark.parametrize(
    ("address", "nearby"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.9.1:50051", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("10.0.0.7:50051", True),
        ("[fd00::7]:50051", True),
        ("[fe80::1]:50051", True),
        ("0.0.0.0:50051", True),
        ("router:50051", True),
        ("router.lan.internal:50051", True),
        ("8.8.8.8:50051", False),
        ("[2001:4860::8888]:50051", False),
        ("router.example.com:443", False),
        ("dns:///router.example.com:443", False),
    ],
)
def test_who_is_nearby(address: str, nearby: bool) -> None:
    assert is_nearby(address) is nearby
