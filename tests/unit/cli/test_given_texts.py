"""Texts and files that are given to commands and are not what they should be: one line, and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "cli"]
LATIN1 = b"caf\xe9, s\xed?"


def outcome(
    *words: str | bytes, given: bytes = b"", expect: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*COMMAND, *words],
        input=given,
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == expect, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    return done


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "en_US.ISO-8859-1"])
def test_a_prompt_that_is_not_utf8(locale: str) -> None:
    environment = {"LC_ALL": locale}
    read = outcome("generate", "-", given=b"first\n" + LATIN1, expect=2, environment=environment)
    assert read.stderr.startswith(b"standard input is not UTF-8: line 2 has the byte 0xe9")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([LATIN1], b"the prompt"),
        (["x", b"--stop", LATIN1], b"--stop"),
        (["x", b"--request-id", LATIN1], b"--request-id"),
        (["x", b"--profile", LATIN1], b"--profile"),
    ],
)
def test_an_argument_that_is_not_utf8(words: list[str | bytes], name: bytes) -> None:
    assert outcome("generate", *words, expect=2).stderr.startswith(name + b" is not UTF-8: see its character 4")


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    done = outcome("health", "127.0.0.1:9", "--ca-file", str(missing), expect=1)
    assert done.stderr == f"{missing}: No such file or directory\n".encode()


@pytest.mark.parametrize("words", [["--version"], ["router", "--version"], ["gateway", "--version"]])
def test_the_version_is_told_whatever_the_configuration(words: list[str]) -> None:
    done = outcome(*words, expect=0, environment={"SLOS_SERVE_ROUTR__PORT": "1"})
    assert done.stdout.split()[0] == b"slos-serve"
    assert done.stdout.split()[1][:1].isdigit()


def test_a_reader_that_has_read_enough_ends_a_command_without_a_word() -> None:
    with subprocess.Popen([*COMMAND, "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait(60) == 1
