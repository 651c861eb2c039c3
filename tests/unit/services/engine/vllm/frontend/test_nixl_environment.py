"""The environment in which NIXL and UCX run."""

from __future__ import annotations

import pytest

from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.nixl_backend import environment

DEVICES = "UCX_NET_DEVICES"


@pytest.mark.parametrize("host", ["", "127.0.0.1", "127.0.0.7", "::1", "localhost"])
def test_an_engine_on_loopback_lets_ucx_listen_nowhere_else(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICES, raising=False)
    assert environment(VllmEngineConfig(side_channel_host=host))[DEVICES] == "lo"
    monkeypatch.setenv(DEVICES, "eth1")
    assert environment(VllmEngineConfig(side_channel_host=host))[DEVICES] == "eth1"


@pytest.mark.parametrize("host", ["10.0.0.7", "worker-1.example", "fd00::7"])
def test_an_engine_that_others_reach_leaves_the_devices_to_its_environment(host: str) -> None:
    assert DEVICES not in environment(VllmEngineConfig(side_channel_host=host))
