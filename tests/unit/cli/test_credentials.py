"""Credentials of commands: what each sends, what it refuses to send, and what it says of a refused one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from services.rpc import errors as server
from tests.unit.client.scripted import scripted, whole_stream

KEY = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLOS_SERVE_API_KEY", raising=False)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.output


@pytest.mark.parametrize("words", [("generate", "Hi"), ("status",), ("top", "--once")])
def test_commands_send_the_key_of_the_environment_or_of_a_file(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("sk-of-a-file\n")
    with scripted(whole_stream()) as router:
        assert run(*words, "--address", router.address)[0] == 0
        monkeypatch.setenv("SLOS_SERVE_API_KEY", KEY)
        assert run(*words, "--address", router.address)[0] == 0
        assert run(*words, "--address", router.address, "--api-key-file", str(file))[0] == 0
        assert router.credentials == [None, f"Bearer {KEY}", "Bearer sk-of-a-file"]


@pytest.mark.parametrize("words", [("generate", "Hi"), ("status",), ("top", "--once"), ("explain", "r-1")])
def test_no_command_sends_a_key_unencrypted_to_another_machine(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOS_SERVE_API_KEY", KEY)
    code, said = run(*words, "--address", "192.0.2.1:50051")
    assert code == 2
    assert "192.0.2.1:50051" in said
    assert "--insecure-credentials" in said
    assert KEY not in said


def test_what_is_said_of_a_refused_key_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOS_SERVE_API_KEY", KEY)
    refused = server.UnauthenticatedError("the API key is not, or no longer, valid")
    with scripted([refused]) as router:
        code, said = run("generate", "Hi", "--address", router.address)
    assert code == 1
    assert "no longer, valid" in said
    assert "--api-key-file" in said
    assert KEY not in said


def test_the_load_generator_sends_the_key_to_routers_but_not_that_of_another_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = ("--prompt-tokens", "4", "--requests", "1", "--rate", "50", "--patience", "1", "--seed", "7")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    with scripted(whole_stream()) as router:
        run("bench", "serve", "--target", f"grpc://{router.address}", *load)
        assert set(router.credentials) == {None}
        monkeypatch.setenv("SLOS_SERVE_API_KEY", KEY)
        run("bench", "serve", "--target", f"grpc://{router.address}", *load)
        assert set(router.credentials) == {None, f"Bearer {KEY}"}
    for target in ("grpc://192.0.2.1:50051", "http://192.0.2.1:8000/v1", "http://127.0.0.1.example.com/v1"):
        code, said = run("bench", "serve", "--target", target, *load)
        assert code == 2
        assert "credentials" in said
        assert "unencrypted" in said
        assert KEY not in said
