"""Proxies that the environment names are for the outside."""

from __future__ import annotations

from services.network.proxies import reach_directly


def test_this_machine_and_the_named_hosts_are_added_to_the_exceptions() -> None:
    environment = {"http_proxy": "http://proxy:3128", "NO_PROXY": "intra.example, 127.0.0.1", "no_grpc_proxy": "x"}
    reach_directly(environment, ["[fd00::7]", "router-1"])
    wanted = "intra.example,127.0.0.1,localhost,127.0.0.0/8,::1,fd00::7,router-1"
    assert environment["no_proxy"] == environment["NO_PROXY"] == wanted
    assert environment["no_grpc_proxy"] == "x,localhost,127.0.0.1,127.0.0.0/8,::1,fd00::7,router-1"
    before = dict(environment)
    reach_directly(environment, ["router-1"])
    assert environment == before


def test_an_environment_without_proxies_stays_as_it_is() -> None:
    environment = {"HOME": "/home/x", "https_proxy": ""}
    reach_directly(environment)
    assert environment == {"HOME": "/home/x", "https_proxy": ""}
