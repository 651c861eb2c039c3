"""A launcher is told before anything starts that its credential does not do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.local.cluster import LocalCluster
from deploy.local.errors import ClusterStartError
from deploy.local.operator_key import check_operator_key
from deploy.local.run_directory import read_state
from services.config.auth import AuthSettings
from services.config.environment import API_KEY_VARIABLE
from services.config.load import load_settings
from services.identity.api_key import make_key
from services.identity.key_file import write_keys
from services.identity.principal import Role

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
ISSUER = {"jwt_jwks": "https://issuer.example/keys", "jwt_issuer": "https://issuer.example", "jwt_audience": "blue"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def kept(file: Path, *roles: Role, expires: datetime | None = None) -> str:
    """Write a file with one key, and return the key."""
    written, key = make_key("acme", frozenset(roles), expires=expires)
    write_keys(file, [key])
    return written


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.ADMIN])
def test_a_key_that_may_observe_does(role: Role, keys_file: Path) -> None:
    check_operator_key(AuthSettings(keys_file=keys_file), kept(keys_file, role), NOW)


def test_a_client_s_key_does_not(keys_file: Path) -> None:
    key = kept(keys_file, Role.CLIENT)
    with pytest.raises(ClusterStartError, match="that of a client") as raised:
        check_operator_key(AuthSettings(keys_file=keys_file), key, NOW)
    assert key not in str(raised.value)


@pytest.mark.parametrize("credential", ["slos_0123456789abcdef_x", "a.token.here"])
def test_a_key_that_the_file_does_not_have_does_not(credential: str, keys_file: Path) -> None:
    kept(keys_file, Role.OPERATOR)
    with pytest.raises(ClusterStartError, match="not a valid key") as raised:
        check_operator_key(AuthSettings(keys_file=keys_file), credential, NOW)
    assert credential not in str(raised.value)


def test_an_expired_or_altered_key_does_not(keys_file: Path) -> None:
    key = kept(keys_file, Role.OPERATOR, expires=NOW - timedelta(seconds=1))
    with pytest.raises(ClusterStartError, match="not valid"):
        check_operator_key(AuthSettings(keys_file=keys_file), key, NOW)
    other = kept(keys_file, Role.OPERATOR)
    with pytest.raises(ClusterStartError, match="not valid"):
        check_operator_key(AuthSettings(keys_file=keys_file), other[:-1] + ("A" if other[-1] != "A" else "B"), NOW)


def test_what_only_a_router_can_tell_is_let_through(keys_file: Path) -> None:
    check_operator_key(AuthSettings.model_validate(ISSUER), "a.token.here", NOW)
    kept(keys_file, Role.OPERATOR)
    both = AuthSettings(keys_file=keys_file, keys_in_redis=True)
    check_operator_key(both, "slos_0123456789abcdef_x", NOW)


def test_without_authentication_nobody_needs_a_key() -> None:
    check_operator_key(AuthSettings(), None, NOW)


def test_a_file_that_cannot_be_read_is_named(keys_file: Path) -> None:
    with pytest.raises(ClusterStartError, match=str(keys_file)):
        check_operator_key(AuthSettings(keys_file=keys_file), "a.token.here", NOW)


def test_nothing_is_started_without_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    overrides = {
        "auth": {"keys_file": str(tmp_path / "keys.json")},
        "launcher": {"run_dir": str(tmp_path / "run"), "gateway": False},
        "router": {"port": 0},
        "console": {"port": 0},
    }
    settings, said = load_settings(None, overrides), list[str]()
    with pytest.raises(ClusterStartError, match="SLOS_SERVE_API_KEY"):
        LocalCluster(settings, None, die_with_parent=True, report=said.append).start()
    assert said == []
    assert read_state(tmp_path / "run") is None
