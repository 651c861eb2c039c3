"""The whole demo with emulated engines: every act shows its point, or the demo says which did not and fails."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-m", "cli"]
CONFIG = """
[launcher]
run_dir = "{run_dir}"
prefill = 0
decode = 2
[router]
port = 0
local_prefill = true
max_restarts = {max_restarts}
max_hold_s = 0.25
[gateway]
port = 0
[redis]
heartbeat_s = 0.2
heartbeat_ttl_s = 1.0
[engine]
kind = "emulated"
[engine.emulated]
overhead_s = 0.03
per_token_s = 0.001
step_cap_s = 60
kv_blocks = 4096
"""


def configured(directory: Path, max_restarts: int) -> Path:
    file = directory / "demo.toml"
    file.write_text(CONFIG.format(run_dir=directory / "run", max_restarts=max_restarts))
    return file


def run(*arguments: str, expect: int) -> str:
    outcome = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=240)
    output = outcome.stdout + outcome.stderr
    assert outcome.returncode == expect, output
    return output


def test_every_act_shows_its_point_and_the_cluster_can_be_kept(tmp_path: Path) -> None:
    config = configured(tmp_path, max_restarts=3)
    try:
        output = run("demo", "--keep", "-c", str(config), expect=0)
        assert "the tokens are made up" in output
        assert [line.split()[2] for line in output.splitlines() if line.startswith("  act ")] == ["ok"] * 4, output
        assert "of 16 promised before their first token" in output
        assert "with promises" in output
        assert "prefill time binds; it could be promised in" in output
        assert "72 tokens, none lost and none repeated" in output
        assert "4 of 4 acts showed what they are for" in output
        assert "\x1b[" not in output, "plain lines outside a terminal"
        gateway = next(line.split("http://")[1].split("/")[0] for line in output.splitlines() if "curl" in line)
        with urllib.request.urlopen(f"http://{gateway}/health", timeout=30) as answer:
            assert answer.status == HTTPStatus.OK
        status = run("status", "-c", str(config), expect=0)
        assert status.count("ready") == 2, "the killed worker is there again"
    finally:
        run("down", "-c", str(config), expect=0)


def test_an_act_that_does_not_show_its_point_fails_the_demo(tmp_path: Path) -> None:
    """Streams that may not be started again do not live through the loss of their worker."""
    output = run("demo", "-c", str(configured(tmp_path, max_restarts=0)), expect=1)
    verdicts = [line for line in output.splitlines() if line.startswith("  act ")]
    assert len(verdicts) == 4
    assert "act 4: FAILED: UNAVAILABLE" in verdicts[3]
    assert "demo --keep" in output, "how to go on is said all the same"
    assert "no cluster runs" in run("down", "-c", str(tmp_path / "demo.toml"), expect=1)
