"""The page for Prometheus, over real HTTP: who may read it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError

from services.config.auth import AuthSettings
from services.config.settings import Settings
from services.telemetry.metrics_page import MetricsPage
from services.telemetry.settings import TelemetrySettings

TOKEN = "scrape-0123456789abcdef"


@contextmanager
def page(token_file: Path | None, host: str = "127.0.0.1") -> Iterator[int]:
    registry = CollectorRegistry()
    Counter("promises", "", registry=registry).inc(7)
    served = MetricsPage(host, 0, registry, token_file)
    try:
        yield served.port
    finally:
        served.close()


def ask(port: int, path: str = "/metrics", host: str = "127.0.0.1", **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(host, port, timeout=30.0)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers.get("www-authenticate", "")
    finally:
        connection.close()


def test_without_a_token_everybody_reads_it() -> None:
    with page(None) as port:
        status, text, _ = ask(port, authorization="Bearer whatever")
    assert status == 200
    assert "promises_total 7.0" in text


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"],
)
@pytest.mark.parametrize("path", ["/metrics", "/", "//metrics", "/metrics/", "/favicon.ico"])
def test_with_a_token_nobody_else_reads_anything(tmp_path: Path, given: str | None, path: str) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    with page(file) as port:
        status, text, challenge = ask(port, path, **({} if given is None else {"authorization": given}))
    assert (status, challenge) == (401, "Bearer")
    assert "promises" not in text


def test_a_token_is_changed_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with page(file) as port:
        assert ask(port, authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(port, authorization=f"bearer  {TOKEN} ")[0] == 200
        file.write_text("another")
        assert ask(port, authorization=f"Bearer {TOKEN}")[0] == 401
        assert ask(port, authorization="Bearer another")[0] == 200
        for content in (b"", b"two words", b"x" * 5000):
            file.write_bytes(content)
            assert ask(port, authorization=f"Bearer {content.decode()}")[0] == 401
        file.unlink()
        assert ask(port, authorization="Bearer ")[0] == 401


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_ipv6_address(tmp_path: Path) -> None:
    with page(None, "[::1]") as port:
        assert ask(port, host="::1")[0] == 200


def test_metrics_are_not_served_to_a_network_without_a_token_or_a_word() -> None:
    wide = TelemetrySettings(metrics_host="0.0.0.0")
    with pytest.raises(ValidationError, match=r"telemetry\.metrics_token_file"):
        Settings(telemetry=wide)
    with pytest.raises(ValidationError, match=r"telemetry\.metrics_token_file"):
        Settings(telemetry=wide, auth=AuthSettings(keys_file=Path("keys.json")))
    for allowed, auth in (
        (wide, AuthSettings(insecure=True)),
        (wide.model_copy(update={"metrics": False}), AuthSettings()),
        (wide.model_copy(update={"metrics_token_file": Path("token")}), AuthSettings()),
    ):
        assert Settings(telemetry=allowed, auth=auth).telemetry is not None
