"""`slos-serve` on machines set up in other ways: proxies, other addresses, a Redis with a password, taken ports."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.local import processes
from deploy.local.ports import free_port
from deploy.local.redis_server import redis_command
from deploy.local.run_directory import STATE_FILE
from tests.cluster.conftest import EMULATED
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.cluster import ClusterUnderTest

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "cli"]
NOBODY = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"), NOBODY)
PASSWORD = "hunter/2"


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis that wants a password, with that password."""
    port = free_port()
    command = [*redis_command(port, tmp_path), "--requirepass", PASSWORD]
    running = processes.start("redis", command, tmp_path / "redis.log", {}, die_with_parent=True)
    try:
        yield f"redis://:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{port}/0"
    finally:
        processes.stop([running], 10.0, lambda line: None)


def configuration(directory: Path, **replaced: str) -> Path:
    text = EMULATED.format(
        model=write_tiny_model(directory / "tiny"), run_dir=directory / "a run", prefill=1, decode=1, patience_s=2.0
    )
    for old, new in replaced.items():
        text = text.replace(f"[{old}]", f"[{old}]\n{new}")
    file = directory / "my cluster.toml"
    file.write_text(text)
    return file


def run(words: list[str], directory: Path, expect: int = 0, environment: Mapping[str, str] | None = None) -> str:
    outcome = subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **(environment or {})},
    )
    said = outcome.stdout + outcome.stderr
    assert outcome.returncode == expect, said
    assert "Traceback" not in said
    return said


def printed(said: str, name: str) -> list[str]:
    """The words of what `up` printed under a name."""
    return shlex.split(next(line for line in said.splitlines() if line.startswith(f"{name} ")))[1:]


def test_a_cluster_behind_proxies_on_ipv6_with_a_guarded_redis_prints_what_works(
    tmp_path: Path, guarded_redis: str
) -> None:
    configuration(tmp_path, router='host = "::1"', redis=f'url = "{guarded_redis}"')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    up = run(
        ["up", "-c", "my cluster.toml", "--http-port", "0"],
        tmp_path,
        environment={"SLOS_SERVE_GATEWAY__HOST": "::", "SLOS_SERVE_AUTH__INSECURE": "true", **PROXIES},
    )
    try:
        assert printed(up, "router")[0].startswith("[::1]:")
        url = printed(up, "http")[0]
        assert url.startswith("http://[::1]:")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/models", timeout=30) as answer:
            assert answer.status == 200
        tried = printed(up, "try")
        assert tried[:2] == ["slos-serve", "generate"]
        assert ": 3 tokens, " in run([*tried[1:], "--max-tokens", "3"], elsewhere, environment=PROXIES)
        status = run(["status", "-c", str(tmp_path / "my cluster.toml")], elsewhere, environment=PROXIES)
    finally:
        stopped = run(printed(up, "stop")[1:], elsewhere)
    assert "stopped" in stopped
    written = "".join(file.read_text() for file in (tmp_path / "a run").glob("*.log"))
    assert "hunter" not in up + status + stopped + written
    assert printed(up, "redis")[0].startswith("redis://:***@127.0.0.1:")


def test_a_port_of_somebody_else_is_refused_at_once(emulated: ClusterUnderTest, tmp_path: Path) -> None:
    port = emulated.address.rpartition(":")[2]
    config = configuration(tmp_path)
    said = run(["up", "-c", str(config)], tmp_path, expect=1, environment={"SLOS_SERVE_ROUTER__PORT": port})
    assert said.startswith(f"router.port: cannot listen on 127.0.0.1:{port}: the address is in use")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "a run" / STATE_FILE).exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("REDIS__URL", "redis://:hunter2@127.0.0.1:9/0", "Redis at redis://:***@127.0.0.1:9/0 is unreachable"),
        ("REDIS__URL", "redis://:hunter2", "redis.url 'redis://:***': it cannot be read"),
        ("ROUTER__HOST", "192.0.2.1", "router.host: cannot listen on 192.0.2.1:0"),
        ("ROUTER__HOST", "0.0.0.0", "router.host = 0.0.0.0: whoever reaches this machine could use the cluster"),
        ("LAUNCHER__RUN_DIR", "/proc/nowhere", "launcher.run_dir /proc/nowhere cannot be written"),
        ("MODEL__PATH", "~nobody-of-this-name", "model.path ~nobody-of-this-name"),
    ],
)
def test_what_keeps_a_cluster_from_starting_is_one_line(tmp_path: Path, option: str, value: str, said: str) -> None:
    config = configuration(tmp_path)
    environment = {f"SLOS_SERVE_{option}": value}
    lines = run(["up", "-c", str(config)], tmp_path, expect=1, environment=environment).splitlines()
    assert [line for line in lines if not line.startswith("  model ")] == lines[-1:]
    assert lines[-1].startswith(said)
    assert "hunter" not in lines[-1]
