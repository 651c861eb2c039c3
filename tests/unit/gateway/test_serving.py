"""The process of a gateway: how it begins, and how it ends in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import pytest

from gateway.app import serve
from services.config.settings import GatewaySettings, Settings
from tests.support.eventually import eventually


async def test_a_gateway_serves_until_sigterm_and_reaches_its_routers_past_a_proxy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "elsewhere.example")
    options = GatewaySettings(host="127.0.0.1", port=0, routers=("router.example:7000",))
    serving = asyncio.create_task(serve(Settings(gateway=options)))
    await eventually(lambda: "gateway to router.example:7000 on 127.0.0.1" in caplog.text)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(30.0):
        assert await serving == 0
    exceptions = os.environ["no_proxy"].split(",")
    assert {"elsewhere.example", "router.example"} <= set(exceptions)
    assert "7000" not in exceptions


async def test_a_gateway_that_cannot_listen_says_why_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    options = GatewaySettings(host="192.0.2.1", port=0, routers=("router.example:7000",))  # Of no machine: RFC 5737.
    assert await serve(Settings(gateway=options)) == 2
    assert "192.0.2.1" in caplog.text
