"""JSON web tokens: which are trusted, and whose they are."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from services.identity.jwks import Jwks
from services.identity.principal import Principal, Role
from services.identity.refusal import Cause, CredentialError
from services.identity.tokens import TokenRules, TokenVerifier, principal_of
from tests.support.tokens import AUDIENCE, ISSUER, Issuer, answering

RULES = TokenRules(ISSUER, AUDIENCE, ("ES256", "RS256"), "tenant", "roles", leeway_s=30)
SIGNER, STRANGER = Issuer(), Issuer()


def verifier(rules: TokenRules = RULES, clock: Any = time.time, jwks: Any = None) -> TokenVerifier:
    return TokenVerifier(rules, Jwks("keys", fetch=answering(lambda: jwks or SIGNER.jwks())), clock)


async def refused(token: str) -> Cause:
    with pytest.raises(CredentialError) as raised:
        await verifier().verify(token)
    return raised.value.cause


async def test_whose_a_token_is() -> None:
    principal = await verifier().verify(SIGNER.token(roles=["client", "operator", "of something else"]))
    assert principal == Principal("somebody", "acme", frozenset({Role.CLIENT, Role.OPERATOR}))


@pytest.mark.parametrize(
    ("claims", "cause"),
    [
        ({"exp": None}, Cause.INCOMPLETE),
        ({"iss": None}, Cause.INCOMPLETE),
        ({"aud": None}, Cause.INCOMPLETE),
        ({"sub": None}, Cause.INCOMPLETE),
        ({"tenant": None}, Cause.INCOMPLETE),
        ({"tenant": "a/b"}, Cause.INCOMPLETE),
        ({"tenant": ["acme"]}, Cause.INCOMPLETE),
        ({"sub": "s" * 129}, Cause.INCOMPLETE),
        ({"roles": {"client": 1}}, Cause.INCOMPLETE),
        ({"iss": "https://other.example"}, Cause.UNTRUSTED),
        ({"aud": "another cluster"}, Cause.UNTRUSTED),
        ({"nbf": time.time() + 3600}, Cause.UNTRUSTED),
        ({"exp": time.time() - 31}, Cause.EXPIRED),
        ({"exp": "tomorrow"}, Cause.MALFORMED),
        ({"exp": 1e400}, Cause.MALFORMED),
        ({"exp": 10**400}, Cause.INCOMPLETE),
        ({"exp": "1" + "0" * 400}, Cause.INCOMPLETE),
    ],
)
async def test_tokens_that_say_the_wrong_thing(claims: dict[str, Any], cause: Cause) -> None:
    assert await refused(SIGNER.token(**claims)) is cause


async def test_clocks_may_differ_by_the_leeway() -> None:
    assert (await verifier().verify(SIGNER.token(exp=time.time() - 10))).tenant == "acme"


async def test_an_operator_needs_no_tenant_and_nobody_without_a_role_has_rights() -> None:
    assert await verifier().verify(SIGNER.token(tenant=None, roles="operator")) == Principal(
        "somebody", "", frozenset({Role.OPERATOR})
    )
    assert (await verifier().verify(SIGNER.token(roles=None))).roles == frozenset()
    assert (await verifier().verify(SIGNER.token(roles=["clientele", "Admin"]))).roles == frozenset()


def test_without_a_claim_for_roles_every_token_is_a_clients() -> None:
    rules = TokenRules(ISSUER, AUDIENCE, ("ES256",), "org", "", leeway_s=0)
    assert principal_of({"sub": "s", "org": "globex", "roles": ["admin"]}, rules).roles == {Role.CLIENT}


async def test_a_signature_of_another_key_is_refused() -> None:
    assert await refused(STRANGER.token()) is Cause.UNTRUSTED


def unsigned(header: dict[str, Any], signature: str = "") -> str:
    claims = jwt.decode(SIGNER.token(), options={"verify_signature": False})
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, signature])


async def test_no_token_is_taken_without_a_signature_or_with_a_public_key_as_a_secret() -> None:
    for algorithm in ("none", "None", "nOnE", "HS256", "ES384", None, 5, ["ES256"]):
        assert await refused(unsigned({"alg": algorithm, "kid": "key-1"})) in (Cause.UNTRUSTED, Cause.MALFORMED)
    pem = SIGNER.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # PyJWT itself refuses to sign with such a secret, so it is done by hand.
    import hashlib
    import hmac

    token = unsigned({"alg": "HS256", "kid": "key-1"}).rstrip(".")
    signature = base64.urlsafe_b64encode(hmac.new(pem, token.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    assert await refused(f"{token}.{signature}") is Cause.UNTRUSTED


async def test_a_token_cannot_bring_its_own_key() -> None:
    for headers in ({"jwk": STRANGER.public}, {"jku": "https://evil.example/jwks"}, {"x5u": "https://evil.example"}):
        assert await refused(STRANGER.token(headers)) is Cause.UNTRUSTED


async def test_a_verified_token_is_remembered_until_it_expires_or_its_key_is_withdrawn() -> None:
    now_s = time.time()
    answer: dict[str, Any] = SIGNER.jwks()
    keys = Jwks("keys", fetch=answering(lambda: answer))
    verifies = TokenVerifier(RULES, keys, lambda: now_s)
    token = SIGNER.token(exp=now_s + 100)
    first = await verifies.verify(token)
    assert await verifies.verify(token) is first
    now_s += 130
    with pytest.raises(CredentialError) as raised:
        await verifies.verify(token)
    assert raised.value.cause is Cause.EXPIRED
    now_s -= 130
    assert await verifies.verify(token) == first
    answer = Issuer("key-9").jwks()
    await keys.refresh()
    with pytest.raises(CredentialError) as raised:
        await verifies.verify(token)
    assert raised.value.cause is Cause.UNTRUSTED


async def test_a_remembered_token_is_refused_once_the_keys_are_too_old_to_be_used() -> None:
    now_s, away = 7000.0, False

    def answer() -> Any:
        if away:
            raise OSError("away")
        return SIGNER.jwks()

    keys = Jwks("keys", max_age_s=3600, clock=lambda: now_s, fetch=answering(answer))
    verifies = TokenVerifier(RULES, keys, time.time)
    token = SIGNER.token(exp=time.time() + 100_000)
    first = await verifies.verify(token)
    away = True
    now_s += 3600
    assert await verifies.verify(token) is first
    now_s += 1
    with pytest.raises(CredentialError) as raised:
        await verifies.verify(token)
    assert raised.value.cause is Cause.UNTRUSTED
    away = False
    now_s += 10
    assert await verifies.verify(token) == first


PIECE = st.text(st.characters(max_codepoint=127)) | st.just("eyJhbGciOiJFUzI1NiIsImtpZCI6ImtleS0xIn0")


@given(st.lists(PIECE, max_size=5).map(".".join))
async def test_no_text_raises_anything_else(token: str) -> None:
    assert await refused(token) in Cause
