"""API keys: made, recognised, expired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from services.identity.api_key import WRITTEN, ApiKey, hash_of, make_key
from services.identity.principal import Principal, Role
from services.identity.refusal import Cause, CredentialError

CLIENT = frozenset({Role.CLIENT})
NOW = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)


def test_a_key_is_recognised_and_only_its_hash_is_kept() -> None:
    written, kept = make_key("acme", CLIENT, "ci")
    assert WRITTEN.fullmatch(written)
    assert written.split("_")[1] == kept.id
    assert written.partition(kept.id)[2] not in kept.model_dump_json()
    assert kept.check(written, NOW) == Principal("ci", "acme", CLIENT)


def test_two_keys_have_nothing_in_common() -> None:
    one, other = make_key("acme", CLIENT), make_key("acme", CLIENT)
    assert one[1].id != other[1].id
    assert one[0] != other[0]
    with pytest.raises(CredentialError) as raised:
        one[1].check(other[0], NOW)
    assert raised.value.cause is Cause.UNKNOWN


def test_the_last_character_of_a_secret_counts() -> None:
    written, kept = make_key("acme", CLIENT)
    changed = written[:-1] + ("A" if written[-1] != "A" else "B")
    with pytest.raises(CredentialError):
        kept.check(changed, NOW)


def test_a_key_is_refused_from_the_moment_at_which_it_expires() -> None:
    written, kept = make_key("acme", CLIENT, expires=NOW)
    kept.check(written, NOW - timedelta(microseconds=1))
    with pytest.raises(CredentialError) as raised:
        kept.check(written, NOW)
    assert raised.value.cause is Cause.EXPIRED


def test_who_has_expired_is_told_only_to_whoever_has_the_key() -> None:
    """Otherwise ids, which are public, could be asked about."""
    written, kept = make_key("acme", CLIENT, expires=NOW - timedelta(days=1))
    with pytest.raises(CredentialError) as raised:
        kept.check(f"{written[:-4]}----", NOW)
    assert raised.value.cause is Cause.UNKNOWN


@pytest.mark.parametrize("tenant", ["", "a/b", "a b", "a\n", "ü", "t" * 65])
def test_names_of_tenants_that_could_be_taken_for_something_else(tenant: str) -> None:
    with pytest.raises(ValidationError):
        make_key(tenant, CLIENT)


def test_a_key_without_a_role_is_none() -> None:
    with pytest.raises(ValidationError):
        ApiKey(id="0" * 16, sha256=hash_of("x"), tenant="acme", roles=frozenset())
