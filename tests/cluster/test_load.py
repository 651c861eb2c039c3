"""The load generator against a running cluster, through both protocols."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from cli.app import app

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest
    from tests.support.http_door import HttpDoor

pytestmark = pytest.mark.cluster

EASY = "ttft=60,tpot=60"
VOCABULARY = ["--highest-token", "1000"]


def bench(*arguments: str) -> Any:
    outcome = CliRunner().invoke(app, ["bench", "serve", *VOCABULARY, *arguments])
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.exception
    return outcome


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["records"]
    return found


@pytest.fixture
def targets(emulated: ClusterUnderTest, door: HttpDoor) -> dict[str, str]:
    emulated.wait_ready(4)
    return {"grpc": f"grpc://{emulated.address}", "http": f"{door.url}/v1"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_sweep_through_each_protocol(targets: dict[str, str], protocol: str, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("r.json", "r.md", "r.svg")]
    outcome = bench(
        *("--target", targets[protocol], "--rate", "10", "--rate", "25", "--requests", "20", "--seed", "5"),
        *("--prompt-tokens", "60", "--output-tokens", "6", "--length-sigma", "0.3", "--burstiness", "2"),
        *("--slo", f"{EASY}@3", "--slo", "ttft=0.000001,refuse"),
        *("--json", str(outputs[0]), "--markdown", str(outputs[1]), "--plot", str(outputs[2])),
    )
    assert outcome.exit_code == 0, outcome.output
    for record in records(outputs[0]):
        overall = record["overall"]
        assert record["emulated"]
        assert overall["offered"] == 20
        assert overall["refused"]["impossible_contract"] == 20 - overall["guaranteed"] > 0
        assert overall["kept"] == overall["attained"] == overall["complete"] == overall["guaranteed"]
        assert overall["attainment"] == overall["kept"] / 20, "a refusal is a miss"
        assert overall["ttft_s"]["count"] == overall["complete"]
        assert 0 < overall["tpot_mean_s"]["p50"] <= overall["tpot_required_s"]["p50"]
        assert overall["hidden_tokens"] == 0
        assert overall["phases_s"]["prefill"]["p50"] > 0
        agreement = overall["agreement"]
        assert agreement["both_kept"] == agreement["compared"] == overall["complete"]
        assert {of["ask"] for of in record["by_ask"]} == {EASY, "ttft=1e-06"}
        assert record["generator"]["lag_s"]["count"] == 20
    assert "emulated" in outcome.output
    assert outputs[1].read_text().count("| 0") > 0
    assert outputs[2].read_text().startswith("<?xml")


def test_what_cannot_be_run_is_said_before_anything_is_sent(targets: dict[str, str], tmp_path: Path) -> None:
    made = ["--prompt-tokens", "10", "--requests", "1"]
    torn = tmp_path / "torn.csv"
    torn.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,many,10\n")
    cases = [
        (["--target", "grpc://127.0.0.1:1", *made], "UNAVAILABLE"),
        (["--target", "http://127.0.0.1:1/v1", *made], "names no model"),
        (["--target", "ftp://127.0.0.1:1", *made], "grpc://host:port"),
        (["--target", targets["grpc"], *made, "--slo", "chat-bot"], "chat-bot"),
        (["--target", targets["http"], *made, "--slo", "chat-bot"], "chat-bot"),
        (["--target", targets["grpc"], *made, "--slo", "ttft=soon"], "no number"),
        (["--target", targets["grpc"], *made, "--model", "gpt-9"], "gpt-9"),
        (["--target", targets["http"], *made, "--model", "gpt-9"], "gpt-9"),
        (["--target", targets["http"], *made, "--highest-token", "4000"], "1024"),
        (["--target", targets["grpc"], "--trace", str(tmp_path / "none.csv")], "No such file"),
        (["--target", targets["grpc"], "--trace", str(torn)], "line 2"),
        (["--target", targets["grpc"], *made, "--rate", "0"], "positive"),
        (["--target", targets["grpc"], *made, "--warm-up", "500"], "warm-up"),
    ]
    for arguments, said in cases:
        outcome = bench(*arguments)
        words = " ".join(outcome.output.replace("│", " ").split())
        assert outcome.exit_code == 2, (arguments, outcome.output)
        assert said in words, (said, words)


def test_ctrl_c_gives_the_report_so_far(targets: dict[str, str], emulated: ClusterUnderTest, tmp_path: Path) -> None:
    before = emulated.state().counters.received
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cli", "bench", "serve", *VOCABULARY, "--target", targets["grpc"]),
            *("--prompt-tokens", "20", "--output-tokens", "4", "--rate", "20", "--seconds", "600"),
            *("--json", str(tmp_path / "r.json")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + 60
        while emulated.state().counters.received < before + 20 and time.monotonic() < deadline_s:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, output
    (record,) = records(tmp_path / "r.json")
    assert record["cut_short"]
    assert record["overall"]["complete"] >= 10
    assert "stopped early" in output
    emulated.wait_empty()
