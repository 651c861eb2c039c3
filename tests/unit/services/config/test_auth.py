"""The options of authentication, and the check that nobody serves strangers by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.config.auth import ALGORITHMS_ALLOWED, AuthSettings
from services.config.credentials import authenticator
from services.config.exposure import ExposedError, check_exposure
from services.config.settings import Settings
from services.identity.api_key import make_key
from services.identity.key_file import KeyFileError, write_keys
from services.identity.principal import Role
from services.identity.tokens import ALGORITHMS
from services.state.connection import StateConnection

TOKENS: dict[str, Any] = {"jwt_jwks": "keys.json", "jwt_issuer": "https://issuer.example", "jwt_audience": "slos"}
STATE = StateConnection("redis://127.0.0.1:1/0", timeout_s=1.0)


@pytest.mark.parametrize("options", [{"keys_file": Path("k")}, {"keys_in_redis": True}, TOKENS])
def test_any_source_of_credentials_switches_their_check_on(options: dict[str, Any]) -> None:
    assert not AuthSettings().on
    assert not AuthSettings(insecure=True).on
    assert AuthSettings(**options).on


@pytest.mark.parametrize("left_out", TOKENS)
def test_tokens_need_keys_issuer_and_audience(left_out: str) -> None:
    with pytest.raises(ValidationError, match="belong together"):
        AuthSettings(**{name: value for name, value in TOKENS.items() if name != left_out})


def test_keys_come_over_https_or_from_this_machine() -> None:
    for url in ("http://issuer.example/keys", "ftp://issuer.example/keys", "file:///etc/keys", "http:///keys"):
        with pytest.raises(ValidationError, match="https URL or a file"):
            AuthSettings(**{**TOKENS, "jwt_jwks": url})
    for url in ("https://issuer.example/keys", "http://127.0.0.1:8080/keys", "/etc/keys.json"):
        assert AuthSettings(**{**TOKENS, "jwt_jwks": url}).on


def test_only_algorithms_with_a_public_key_can_be_allowed() -> None:
    assert set(ALGORITHMS_ALLOWED) == set(ALGORITHMS)
    for name in ("none", "HS256", ""):
        with pytest.raises(ValidationError):
            AuthSettings.model_validate({"jwt_algorithms": [name]})
    with pytest.raises(ValidationError):
        AuthSettings(jwt_algorithms=())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_on_loopback_nothing_is_needed(host: str) -> None:
    check_exposure(AuthSettings(), "router.host", host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "", "localhost.example", "router", "::ffff:1.2.3.4"])
def test_elsewhere_strangers_are_let_in_only_on_purpose(host: str) -> None:
    with pytest.raises(ExposedError, match=r"router\.host = .*auth\.keys_file.*auth\.insecure = true"):
        check_exposure(AuthSettings(), "router.host", host)
    check_exposure(AuthSettings(insecure=True), "router.host", host)
    check_exposure(AuthSettings(keys_in_redis=True), "router.host", host)


async def test_the_authenticator_is_what_the_options_say(tmp_path: Path) -> None:
    assert authenticator(Settings(), STATE) is None
    file = tmp_path / "keys.json"
    written, key = make_key("acme", frozenset({Role.CLIENT}))
    write_keys(file, (key,))
    checks = authenticator(Settings(auth=AuthSettings(keys_file=file, keys_in_redis=True, **TOKENS)), STATE)
    assert checks is not None
    assert (await checks.authenticate(f"Bearer {written}")).tenant == "acme"
    file.write_text("")
    with pytest.raises(KeyFileError):
        authenticator(Settings(auth=AuthSettings(keys_file=file)), STATE)
