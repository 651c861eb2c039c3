"""The doors of a cluster that checks keys: gateway with OpenAI's client, console, command line and Python client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import openai
import pytest
from typer.testing import CliRunner

from cli.app import app
from deploy.local.cluster import LocalCluster, running_cluster
from deploy.local.run_directory import RunningCluster
from services.config.environment import API_KEY_VARIABLE
from services.config.load import load_settings
from services.identity.api_key import ApiKey, make_key
from services.identity.key_file import write_keys
from services.identity.principal import Role
from slos_serve import Client, InvalidRequestError, PermissionDeniedError, UnauthenticatedError, WorkerHealth
from tests.support.browser import Complaints, chromium
from tests.support.eventually import wait_until
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0
CONFIG = """
[model]
path = "{directory}/tiny"
[launcher]
run_dir = "{directory}/run"
prefill = 0
decode = 1
gateway = true
[router]
port = 0
local_prefill = true
[gateway]
port = 0
[console]
port = 0
[auth]
keys_file = "{directory}/keys.json"
[engine]
kind = "emulated"
"""


@dataclass(frozen=True, slots=True)
class Guarded:
    """A running cluster that checks keys, and keys for it."""

    running: RunningCluster
    config: Path
    keys: dict[str, ApiKey]
    client: str
    other: str
    operator: str
    console_url: str

    def openai(self, key: str) -> openai.OpenAI:
        url = f"http://{self.running.gateway_address}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S)

    def key_file(self, key: str) -> str:
        file = self.config.with_name("key")
        file.write_text(key)
        return str(file)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("doors")
    write_tiny_model(directory / "tiny")
    config = directory / "cluster.toml"
    config.write_text(CONFIG.format(directory=directory))
    made = {
        name: make_key(tenant, frozenset({role}), name)
        for name, tenant, role in (
            ("client", "acme", Role.CLIENT),
            ("other", "globex", Role.CLIENT),
            ("operator", "operations", Role.OPERATOR),
        )
    }
    keys = {name: kept for name, (_, kept) in made.items()}
    write_keys(directory / "keys.json", keys.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY_VARIABLE, made["operator"][0])
        cluster = LocalCluster(load_settings(config), config, die_with_parent=True, report=lambda _: None)
        with running_cluster(cluster) as running:
            patch.delenv(API_KEY_VARIABLE)
            with Client(running.router_address, api_key=made["operator"][0]) as asking:
                url = asking.cluster_state().console_url
            client, other, operator = (written for written, _ in made.values())
            yield Guarded(running, config, keys, client, other, operator, url)


def test_openai_s_client_is_served_with_a_key_and_not_without(guarded: Guarded) -> None:
    client = guarded.openai(guarded.client)
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=4, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    chunks = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4, stream=True
    )
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] in {"length", "stop"}
    for wrong in ("sk-none", guarded.client[:-1] + "x"):
        stranger = guarded.openai(wrong)
        with pytest.raises(openai.AuthenticationError) as raised:
            stranger.models.list()
        assert raised.value.code == "invalid_api_key"
        assert wrong not in str(raised.value)
        with pytest.raises(openai.AuthenticationError):
            stranger.completions.create(model="tiny", prompt="hello")
    with pytest.raises(openai.PermissionDeniedError):
        guarded.openai(guarded.operator).completions.create(model="tiny", prompt="hello")


def test_the_tenant_is_that_of_the_key_and_errors_name_the_header(guarded: Guarded) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        guarded.openai(guarded.client).completions.create(
            model="tiny", prompt="hello", extra_headers={"x-tenant-id": "globex"}
        )
    assert raised.value.param == "x-tenant-id"


def test_health_is_open_and_names_nobody(guarded: Guarded) -> None:
    answer = httpx.get(f"http://{guarded.running.gateway_address}/health", timeout=PATIENCE_S)
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_python_client_says_who_asks(guarded: Guarded) -> None:
    router = guarded.running.router_address
    with Client(router, api_key=guarded.client) as client:
        assert client.generate("hello").completion().finished.completion_tokens > 0
        state = client.cluster_state()
        assert (state.model, state.workers, state.console_url) == ("tiny", (), "")
        with pytest.raises(InvalidRequestError):
            client.generate("hello", tenant="globex").completion()
    with Client(router, api_key=lambda: guarded.operator) as operator:
        assert [worker.health for worker in operator.cluster_state().workers] == [WorkerHealth.READY]
        with pytest.raises(PermissionDeniedError):
            operator.generate("hello").completion()
    with Client(router) as nobody, pytest.raises(UnauthenticatedError):
        nobody.generate("hello").completion()


def test_the_console_shows_itself_to_operators_only(guarded: Guarded) -> None:
    with httpx.Client(base_url=guarded.console_url, timeout=PATIENCE_S) as browser:
        assert browser.get("/api/state").status_code == 401
        assert browser.get("/", headers={"accept": "text/html"}).headers["location"] == "/login"
        assert browser.post("/login", data={"key": guarded.client}).status_code == 403
        assert browser.post("/login", data={"key": guarded.operator}).status_code == 303
        assert browser.get("/api/state").json()["cluster"]["model"] == "tiny"
        with browser.stream("GET", "/api/events") as events:
            assert next(events.iter_lines()) == "event: state"


def test_an_operator_signs_in_with_a_real_browser(guarded: Guarded) -> None:
    with chromium() as browser:
        page = browser.new_page()
        complaints = Complaints()
        complaints.listen(page)
        page.goto(guarded.console_url)
        assert page.url == f"{guarded.console_url}login"
        page.fill("#key", guarded.client)
        page.click("text=Sign in")
        page.wait_for_selector("text=This key may not observe")
        page.fill("#key", guarded.operator)
        page.click("text=Sign in")
        page.wait_for_selector("#link[data-state=live]")
        assert page.url == guarded.console_url
        assert page.evaluate("document.cookie") == "", "no script can read the session"
        page.reload()
        page.wait_for_selector("#link[data-state=live]")
        page.context.clear_cookies()
        page.goto(guarded.console_url)
        page.wait_for_url("**/login")
        page.fill("#key", guarded.operator)
        page.click("text=Sign in")
        page.wait_for_selector("#link[data-state=live]")
        page.click("text=sign out")
        page.wait_for_url("**/login")
        page.goto(guarded.console_url)
        assert page.url == f"{guarded.console_url}login"
    # Chromium tells of every answer that is no success.
    assert [each for each in complaints.heard if "status of 403" not in each and "status of 401" not in each] == []


def test_commands_say_who_asks(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*words, "--config", str(guarded.config)])
        return result.exit_code, result.output

    code, said = run("status")
    assert code == 1
    assert "UNAUTHENTICATED" in said
    monkeypatch.setenv(API_KEY_VARIABLE, guarded.client)
    code, said = run("generate", "hello", "--max-tokens", "4")
    assert code == 0
    request_id = re.findall(r"^(\S+): 4 tokens", said, re.MULTILINE)[0]
    operator = ("--api-key-file", guarded.key_file(guarded.operator))
    code, said = run("status", *operator)
    assert code == 0
    assert "ready" in said
    assert run("top", "--once", *operator)[0] == 0

    def explained() -> bool:
        code, said = run("explain", f"acme/{request_id}", *operator)
        return code == 0 and request_id in said

    wait_until(explained, "the console knows the request")
    code, said = run("explain", request_id)
    assert code == 1
    assert guarded.client not in said


def test_a_revoked_key_is_refused_at_every_door(guarded: Guarded) -> None:
    keys = [key for name, key in guarded.keys.items() if name != "other"]
    assert [model.id for model in guarded.openai(guarded.other).models.list()] == ["tiny"]
    write_keys(guarded.config.with_name("keys.json"), keys)

    def refused() -> bool:
        try:
            guarded.openai(guarded.other).models.list()
        except openai.AuthenticationError:
            return True
        return False

    wait_until(refused, "the gateway has read the keys again")

    def refused_by_router() -> bool:
        with Client(guarded.running.router_address, api_key=guarded.other) as client:
            try:
                client.cluster_state()
            except UnauthenticatedError:
                return True
            return False

    wait_until(refused_by_router, "the router has read the keys again")
