"""Authentication by the value of an `authorization` header."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.identity.api_key import ApiKey, make_key
from services.identity.authenticator import Authenticator
from services.identity.jwks import Jwks
from services.identity.principal import Principal, Role
from services.identity.refusal import Cause, CredentialError
from services.identity.tokens import TokenVerifier
from tests.support.tokens import Issuer, answering
from tests.unit.services.identity.test_tokens import RULES

CLIENT = frozenset({Role.CLIENT})
NOW_S = 1_900_000_000.0
WRITTEN, KEY = make_key("acme", CLIENT, "ci", datetime.fromtimestamp(NOW_S + 60, UTC))
SIGNER = Issuer()


class Keys:
    """Keys that do not change."""

    def __init__(self, *keys: ApiKey) -> None:
        self.faults = 0
        self._keys = {key.id: key for key in keys}

    def find(self, key_id: str) -> ApiKey | None:
        return self._keys.get(key_id)

    async def run(self) -> None:
        return


def checks(*sources: Keys, tokens: bool = True, now_s: float = NOW_S) -> Authenticator:
    jwks = Jwks("keys", fetch=answering(SIGNER.jwks))
    return Authenticator(sources, TokenVerifier(RULES, jwks, lambda: now_s) if tokens else None, lambda: now_s)


async def refused(who: Authenticator, authorization: str | None) -> Cause:
    with pytest.raises(CredentialError) as raised:
        await who.authenticate(authorization)
    assert who.refused[raised.value.cause] == 1
    return raised.value.cause


async def test_keys_of_any_source_and_tokens_are_taken() -> None:
    who = checks(Keys(), Keys(KEY))
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert await who.authenticate(f"{scheme} {WRITTEN}") == Principal("ci", "acme", CLIENT)
    assert (await who.authenticate(f"Bearer {SIGNER.token()}")).name == "somebody"
    assert not who.refused


async def test_an_expired_key_and_one_that_is_not_there() -> None:
    assert await refused(checks(Keys(KEY), now_s=NOW_S + 60), f"Bearer {WRITTEN}") is Cause.EXPIRED
    assert await refused(checks(Keys()), f"Bearer {WRITTEN}") is Cause.UNKNOWN


@pytest.mark.parametrize("authorization", [None, ""])
async def test_no_credential(authorization: str | None) -> None:
    assert await refused(checks(Keys(KEY)), authorization) is Cause.MISSING


@pytest.mark.parametrize(
    "authorization",
    [
        WRITTEN,
        f"Basic {WRITTEN}",
        f"Bearer {WRITTEN}x",
        f"Bearer {WRITTEN[:-1]}",
        f"Bearer\t{WRITTEN}",
        f"Bearer {WRITTEN}\n",
        f"Bearer {WRITTEN} {WRITTEN}",
        "Bearer",
        "Bearer ü.ü.ü",
        "Bearer " + "a" * 9000,
    ],
    ids=[
        "no scheme",
        "another scheme",
        "too long",
        "too short",
        "a tab",
        "a new line",
        "two keys",
        "a scheme alone",
        "no ASCII",
        "9,000 characters",
    ],
)
async def test_what_is_no_credential(authorization: str) -> None:
    assert await refused(checks(Keys(KEY)), authorization) is Cause.MALFORMED


async def test_tokens_are_refused_where_none_are_configured() -> None:
    assert await refused(checks(Keys(KEY), tokens=False), f"Bearer {SIGNER.token()}") is Cause.MALFORMED


@given(st.text() | st.text().map("Bearer {}".format) | st.text().map("Bearer slos_{}".format))
async def test_no_text_raises_anything_else(authorization: str) -> None:
    assert await refused(checks(Keys(KEY)), authorization) in Cause


async def test_it_runs_until_it_is_cancelled_also_with_nothing_to_do() -> None:
    sources: Sequence[Keys] = (Keys(),)
    running = asyncio.create_task(checks(*sources, tokens=False).run())
    await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
