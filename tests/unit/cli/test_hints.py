"""Commands that are printed to be typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cli.hints import QUESTION, try_command


def test_a_first_prompt_reaches_the_cluster_that_it_is_printed_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shlex.split(try_command(tmp_path / ".slos-serve", "127.0.0.1:7", None)) == [
        "slos-serve", "generate", QUESTION,
    ]  # fmt: skip
    elsewhere = shlex.split(try_command(Path("/var/a"), "[::1]:7", Path("my cluster.toml")))
    assert elsewhere == [
        "slos-serve", "generate", QUESTION, "--config", str(tmp_path / "my cluster.toml"), "--address", "[::1]:7",
    ]  # fmt: skip
