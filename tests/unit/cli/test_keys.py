"""The command that makes, lists and revokes API keys."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from cli.app import app
from services.identity.api_key import WRITTEN
from services.identity.key_file import KeyFile, read_keys
from services.identity.principal import Role
from services.state.api_keys import ApiKeyStore
from services.state.connection import StateConnection

if TYPE_CHECKING:
    from typer.testing import Result

runner = CliRunner()


def keys(*arguments: str, expect: int = 0) -> Result:
    result = runner.invoke(app, ["keys", *arguments])
    assert result.exit_code == expect, result.output
    return result


def test_a_key_is_shown_once_listed_without_its_secret_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = keys("add", "acme", "--name", "ci", "--file", str(file))
    written = made.stdout.strip()
    parts = WRITTEN.fullmatch(written)
    assert parts is not None
    (key,) = read_keys(file).values()
    assert key.check(written, datetime.now(UTC)).tenant == "acme"
    assert (key.roles, key.name) == (frozenset({Role.CLIENT}), "ci")
    assert key.expires is not None
    assert timedelta(days=364) < key.expires - datetime.now(UTC) <= timedelta(days=365)
    listed = keys("list", "--file", str(file)).stdout
    assert parts["id"] in listed
    assert "acme" in listed
    secret = written.partition(parts["id"])[2]
    assert secret not in listed + file.read_text() + made.stderr
    assert secret not in keys("revoke", written, "--file", str(file)).output
    assert read_keys(file) == {}
    assert "no key with this id" in keys("revoke", written, "--file", str(file), expect=1).output


def test_roles_and_a_key_without_an_end(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    keys("add", "acme", "--role", "operator", "--role", "client", "--days", "0", "--file", file)
    (key,) = read_keys(Path(file)).values()
    assert (key.roles, key.expires) == (frozenset({Role.OPERATOR, Role.CLIENT}), None)
    assert "for ever" in keys("list", "--file", file).stdout


async def test_a_running_router_takes_a_new_key_and_refuses_a_revoked_one(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = await asyncio.to_thread(keys, "add", "acme", "--file", str(file))
    known = KeyFile(file)
    second = await asyncio.to_thread(keys, "add", "acme", "--file", str(file))
    await asyncio.to_thread(keys, "revoke", first.stdout.strip(), "--file", str(file))
    await known.look()
    ids = [written.stdout.split("_")[1] for written in (first, second)]
    assert [known.find(key_id) is not None for key_id in ids] == [False, True]


def test_the_configuration_says_where_keys_are(tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(f'[auth]\nkeys_file = "{tmp_path}/keys.json"\n')
    keys("add", "acme", "--config", str(config))
    assert len(read_keys(tmp_path / "keys.json")) == 1
    config.write_text("")
    assert "say --file or --redis" in keys("add", "acme", "--config", str(config), expect=2).output
    both = keys("list", "--redis", "--file", "x", "--config", str(config), expect=2)
    assert "name one of them" in both.output


def test_the_audit_log_tells_who_made_and_revoked_a_key_and_never_the_key(tmp_path: Path) -> None:
    config, log = tmp_path / "cluster.toml", tmp_path / "audit.jsonl"
    config.write_text(f'[auth]\nkeys_file = "{tmp_path}/keys.json"\n[log]\naudit = "{log}"\n')
    keys("add", "acme", "--config", str(config))
    (key_id,) = read_keys(tmp_path / "keys.json")
    keys("revoke", key_id, "--config", str(config))
    made, revoked = [json.loads(line) for line in log.read_text().splitlines()]
    assert (made["event"], made["outcome"], made["target"], made["who"]) == ("key", "done", key_id, "host")
    assert made["detail"].startswith("made for tenant acme by user ")
    assert (revoked["target"], revoked["detail"].partition(" by ")[0]) == (key_id, "revoked")
    assert "slos_" not in log.read_text()
    config.write_text(f'[auth]\nkeys_file = "{tmp_path}/keys.json"\n[log]\naudit = "{tmp_path}"\n')
    assert "the audit log does not know" in keys("add", "acme", "--config", str(config)).stderr


@pytest.mark.parametrize("tenant", ["a/b", "a b", "", "t" * 65])
def test_a_name_that_no_tenant_may_have(tmp_path: Path, tenant: str) -> None:
    assert "tenant" in keys("add", tenant, "--file", str(tmp_path / "keys.json"), expect=1).output
    assert not (tmp_path / "keys.json").exists()


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    said = keys("add", "acme", "--file", str(tmp_path / "keys.json"), expect=1).output
    assert "Invalid JSON" in said
    assert (tmp_path / "keys.json").read_text() == "{"


def test_keys_in_redis(tmp_path: Path, redis_url: str, redis_prefix: str) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(f'[redis]\nurl = "{redis_url}"\nprefix = "{redis_prefix}"\n[auth]\nkeys_in_redis = true\n')
    written = keys("add", "acme", "--config", str(config)).stdout.strip()
    key_id = written.split("_")[1]
    assert key_id in keys("list", "--config", str(config)).stdout

    async def kept() -> set[str]:
        connection = StateConnection(redis_url, timeout_s=30.0)
        _, found = await ApiKeyStore(connection, redis_prefix).changed(None)
        await connection.close()
        assert found is not None
        return set(found)

    assert asyncio.run(kept()) == {key_id}
    keys("revoke", key_id, "--config", str(config))
    keys("revoke", key_id, "--config", str(config), expect=1)
    assert asyncio.run(kept()) == set()


def test_a_redis_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text('[redis]\nurl = "redis://127.0.0.1:1/0"\ntimeout_s = 0.5\n')
    assert "unreachable" in keys("list", "--redis", "--config", str(config), expect=1).output
    config.write_text(f'[launcher]\nrun_dir = "{tmp_path}/run"\n')
    assert "no cluster runs here" in keys("list", "--redis", "--config", str(config), expect=2).output
