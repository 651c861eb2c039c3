"""An issuer of JSON web tokens, for tests."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER, AUDIENCE = "https://issuer.example", "slos"


def answering(answer: Callable[[], Any]) -> Callable[[str], Awaitable[Any]]:
    """A fetch of keys, whatever their source, that gives what `answer` returns at that time."""

    async def fetch(_: str) -> Any:
        return answer()

    return fetch


class Issuer:
    """Signs tokens with one key, and says by which public key they are verified."""

    def __init__(self, key_id: str = "key-1") -> None:
        self.key_id = key_id
        self.private = ec.generate_private_key(ec.SECP256R1())

    @property
    def public(self) -> dict[str, Any]:
        """The public key as a JWK."""
        written: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.private.public_key()))
        return {**written, "kid": self.key_id, "alg": "ES256", "use": "sig"}

    def jwks(self, *others: Issuer) -> dict[str, Any]:
        """The set of this issuer's key and those of others."""
        return {"keys": [issuer.public for issuer in (self, *others)]}

    def token(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token of a client of `acme` for an hour, but for `claims`; a claim that is None is left out."""
        now = time.time()
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "somebody",
            "exp": now + 3600,
            "tenant": "acme",
            "roles": ["client"],
            **claims,
        }
        kept = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(kept, self.private, "ES256", headers={"kid": self.key_id, **(headers or {})})
