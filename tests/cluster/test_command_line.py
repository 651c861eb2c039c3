"""`slos-serve` as a person uses it, with emulated engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.cluster.conftest import EMULATED
from tests.support.eventually import COMMAND_PATIENCE_S, wait_until
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "cli"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "cluster.toml"
    model = write_tiny_model(tmp_path / "tiny")
    file.write_text(EMULATED.format(model=model, run_dir=tmp_path / "run", prefill=1, decode=1, patience_s=2.0))
    return file


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No process of this test's cluster may outlive the test."""
    yield
    try:
        wait_until(lambda: not cluster_processes(tmp_path), "all processes are gone")
    finally:
        for process in cluster_processes(tmp_path):
            process.kill()


def cluster_processes(directory: Path) -> list[psutil.Process]:
    """Services name their configuration on the command line; Redis works in the run directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = [*(process.info["cmdline"] or ()), process.info["cwd"] or ""]
        if str(directory) in " ".join(words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def run(*arguments: str, expect: int = 0) -> str:
    outcome = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=COMMAND_PATIENCE_S
    )
    assert outcome.returncode == expect, outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr


def test_up_generate_status_down(config: Path) -> None:
    up = run("up", "-c", str(config), "--prefill", "2", "--decode", "2", "--http-port", "0")
    assert "router  127.0.0.1:" in up
    try:
        url = next(line.split()[1] for line in up.splitlines() if line.startswith("http "))
        with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"
        assert "runs from" in run("up", "-c", str(config), expect=1)
        loosely = ("--profile", "chatbot", "--ttft-ms", "20000", "--tpot-ms", "2000")
        out = run("generate", "-c", str(config), "hello", "--max-tokens", "5", *loosely)
        assert "guaranteed" in out
        assert "makes these tokens up" in out
        status = run("status", "-c", str(config))
        assert status.count("ready") == 4
        assert "1 received, 1 guaranteed" in status
        refused = run("generate", "-c", str(config), "hello", "--profile", "nobody", expect=1)
        assert "INVALID_ARGUMENT" in refused
        assert "chatbot" in refused
    finally:
        run("down", "-c", str(config))
    assert "no cluster runs" in run("down", "-c", str(config), expect=1)
    assert "no router answers" in run("status", "-c", str(config), "-a", "127.0.0.1:1", expect=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen([*COMMAND, "demo", "-c", str(config)], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(cluster_processes(tmp_path)) >= 5, "the cluster comes up")
    time.sleep(0.5)
    demo.send_signal(number)
    assert demo.wait(timeout=COMMAND_PATIENCE_S) == {signal.SIGKILL: -9}.get(number, 130)


def test_configuration_mistakes_are_named(config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace("[router]", "[router]\nprot = 1\nmax_message_bytes = -1"))
    out = run("router", "-c", str(config), expect=2)
    assert "router.prot" in out
    assert "router.max_message_bytes" in out
    config.write_text(text)
    assert "router.local_prefill = true" in run("up", "-c", str(config), "--prefill", "0", expect=2)
    config.write_text("[router\n")
    assert "cluster.toml" in run("up", "-c", str(config), expect=2)
    assert "no configuration file" in run("up", "-c", str(tmp_path / "other.toml"), expect=2)
    config.write_text(text.replace("[model]", "[model]\nname = 'x'").replace("tiny", "nowhere"))
    assert "no directory" in run("up", "-c", str(config), expect=1)


def test_the_environment_overrides_the_file(config: Path) -> None:
    environment = {**os.environ, "SLOS_SERVE_ROUTER__MAX_MESSAGE_BYTES": "many"}
    outcome = subprocess.run(
        [*COMMAND, "up", "-c", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_PATIENCE_S,
        env=environment,
    )
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("router.max_message_bytes (SLOS_SERVE_ROUTER__MAX_MESSAGE_BYTES): ")
    assert len(outcome.stderr.splitlines()) == 1


def test_the_printed_configuration_is_the_default_one(tmp_path: Path) -> None:
    file = tmp_path / "all.toml"
    file.write_text(run("config"))
    from services.config.load import load_settings
    from services.config.settings import Settings

    assert load_settings(file).model_dump() == Settings().model_dump()
