"""Encrypted doors, end to end: router with client certificates, gateway with https, command line, load generator."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from typer.testing import CliRunner

from cli.app import app
from deploy.local.cluster import LocalCluster, running_cluster
from deploy.local.run_directory import RunningCluster
from services.config.load import load_settings
from slos_serve import Client, Contract, Keepalive, RetryPolicy, Sampling, Tls, UnreachableError, Verdict
from tests.support.certificates import Authority, authority
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

CONFIG = """
[model]
path = "{directory}/tiny"
[launcher]
run_dir = "{directory}/run"
gateway = true
[router]
port = 0
tls_certificate = "{router[0]}"
tls_key = "{router[1]}"
tls_client_ca = "{ca}"
tls_trust = "{ca}"
[gateway]
port = 0
tls_certificate = "{gateway[0]}"
tls_key = "{gateway[1]}"
[engine]
kind = "emulated"
"""
EASY = Contract.latency(ttft_s=60, tpot_s=60)
ONCE = RetryPolicy(max_attempts=1)
SHORT = Sampling(max_tokens=4, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A cluster whose doors are all encrypted."""

    running: RunningCluster
    config: Path
    authority: Authority

    def tls(self, name: str = "") -> Tls:
        certificate, key = (None, None) if not name else (p.read_bytes() for p in self.authority.sign(name))
        return Tls(root_certificates=self.authority.file.read_bytes(), certificate_chain=certificate, private_key=key)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    directory = tmp_path_factory.mktemp("tls")
    write_tiny_model(directory / "tiny")
    ours = authority(directory, "ours")
    config = directory / "cluster.toml"
    config.write_text(
        CONFIG.format(directory=directory, router=ours.sign("router"), gateway=ours.sign("gateway"), ca=ours.file)
    )
    cluster = LocalCluster(load_settings(config), config, die_with_parent=True, report=lambda _line: None)
    with running_cluster(cluster) as running:
        yield Encrypted(running, config, ours)


def test_a_client_with_a_certificate_is_served(encrypted: Encrypted) -> None:
    address = encrypted.running.router_address
    with Client(address, tls=encrypted.tls("somebody"), keepalive=Keepalive(interval_s=20, timeout_s=3)) as client:
        quote = client.quote("hello", contract=EASY)
        assert quote.admission.verdict is Verdict.GUARANTEED
        session = client.session(EASY)
        first = session.generate("hello", sampling=SHORT).completion()
        last = session.generate("hello again", sampling=SHORT, final=True).completion()
        assert [len(first.token_ids), len(last.token_ids)] == [4, 4]


def test_others_are_not(encrypted: Encrypted, tmp_path: Path) -> None:
    address = encrypted.running.router_address
    theirs = authority(tmp_path, "theirs")
    certificate, key = (path.read_bytes() for path in theirs.sign("me"))
    ours = encrypted.authority.file.read_bytes()
    stranger = Tls(root_certificates=ours, certificate_chain=certificate, private_key=key)
    wrong_router = Tls(root_certificates=theirs.file.read_bytes())
    for tls in (None, encrypted.tls(), stranger, wrong_router):
        with Client(address, tls=tls, retry=ONCE) as client, pytest.raises(UnreachableError):
            client.cluster_state(timeout_s=5)


def test_https_through_the_gateway(encrypted: Encrypted) -> None:
    url = f"https://{encrypted.running.gateway_address}/v1/completions"
    trusting = ssl.create_default_context(cafile=str(encrypted.authority.file))
    body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True, "slo": {"ttft_ms": 60_000}}
    answer = httpx.post(url, json=body, verify=trusting, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-slo-verdict"] == "guaranteed"
    with pytest.raises(httpx.ConnectError):
        httpx.post(url, json=body, timeout=30)


def test_the_load_generator_speaks_https(encrypted: Encrypted) -> None:
    target = f"https://{encrypted.running.gateway_address}/v1"
    arguments = ["--prompt-tokens", "10", "--requests", "3", "--rate", "20", "--highest-token", "1000"]
    command = ["bench", "serve", "--target", target, *arguments]
    outcome = CliRunner().invoke(app, [*command, "--ca-file", str(encrypted.authority.file)])
    assert outcome.exit_code == 0, outcome.output
    assert "100.0%" in outcome.output
    assert CliRunner().invoke(app, command).exit_code == 2
