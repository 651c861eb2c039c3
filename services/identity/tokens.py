"""JSON web tokens: which are trusted, and whose they are."""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from services.identity.api_key import TENANT
from services.identity.jwks import Jwks
from services.identity.principal import Principal, Right, Role
from services.identity.refusal import Cause, CredentialError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Algorithms that can be allowed. All have a private and a public key; `none` and those with a shared secret do not."""
MAX_REMEMBERED = 1024
"""Verified tokens that are remembered at most. Verifying one takes about 0.1 ms of the event loop."""
MAX_SUBJECT_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class TokenRules:
    """A token is trusted if it is signed by a key of the issuer and says this."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    tenant_claim: str
    """Name of the claim that holds the tenant."""
    roles_claim: str
    """Name of the claim that holds the roles, as a list or with blanks; empty: every token is a client's."""
    leeway_s: float
    """Seconds by which the clocks of issuer and cluster may differ."""


class TokenVerifier:
    """Verifies tokens, and remembers for a while which it has verified."""

    def __init__(self, rules: TokenRules, keys: Jwks, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: seconds since 1970.
        """
        self._rules = rules
        self._keys = keys
        self._clock = clock
        self._verified: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._generation = keys.generation

    async def verify(self, token: str) -> Principal:
        """Return whoever calls with a token.

        Raises:
            CredentialError: the token is not valid.
        """
        digest = hashlib.sha256(token.encode()).digest()
        self._forget_if_keys_are_others()
        known = self._verified.get(digest)
        if known is not None:
            if self._clock() >= known[1]:
                del self._verified[digest]
                raise CredentialError(Cause.EXPIRED)
            return known[0]
        claims = await self._claims(token)
        principal, ends_s = principal_of(claims, self._rules), _ends_s(claims)
        self._forget_if_keys_are_others()
        self._verified[digest] = (principal, ends_s + self._rules.leeway_s)
        if len(self._verified) > MAX_REMEMBERED:
            self._verified.popitem(last=False)
        return principal

    @property
    def faults(self) -> int:
        """Times that the issuer's keys could not be fetched."""
        return self._keys.faults

    async def run(self) -> None:
        """Keep the issuer's keys up to date until cancelled."""
        await self._keys.run()

    def _forget_if_keys_are_others(self) -> None:
        # Tokens end with the keys that verified them, also with those that are too old to be used.
        if self._generation != self._keys.generation or not self._keys.usable:
            self._verified.clear()
            self._generation = self._keys.generation

    async def _claims(self, token: str) -> Mapping[str, Any]:
        rules = self._rules
        try:
            header = jwt.get_unverified_header(token)
            # Looked at first, so that no token of another kind can cause a fetch.
            if header.get("alg") not in rules.algorithms:
                raise CredentialError(Cause.UNTRUSTED)
            key = await self._keys.key(header.get("kid"))
            if key is None:
                raise CredentialError(Cause.UNTRUSTED)
            return jwt.decode(
                token,
                key,
                algorithms=list(rules.algorithms),
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:
            raise CredentialError(Cause.EXPIRED) from None
        except jwt.MissingRequiredClaimError:
            raise CredentialError(Cause.INCOMPLETE) from None
        except jwt.DecodeError as error:
            forged = isinstance(error, jwt.InvalidSignatureError)
            raise CredentialError(Cause.UNTRUSTED if forged else Cause.MALFORMED) from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise CredentialError(Cause.UNTRUSTED) from None


def principal_of(claims: Mapping[str, Any], rules: TokenRules) -> Principal:
    """Return whoever a verified token names. Roles that this cluster does not know are left out.

    Raises:
        CredentialError: the tenant is missing and needed, or a claim holds what it must not.
    """
    roles = _roles(claims, rules.roles_claim)
    tenant, subject = claims.get(rules.tenant_claim, ""), claims["sub"]
    if not isinstance(tenant, str) or not isinstance(subject, str) or not 1 <= len(subject) <= MAX_SUBJECT_CHARACTERS:
        raise CredentialError(Cause.INCOMPLETE)
    principal = Principal(subject, tenant, roles)
    if (tenant or principal.may(Right.GENERATE)) and not re.fullmatch(TENANT, tenant):
        raise CredentialError(Cause.INCOMPLETE)
    return principal


def _ends_s(claims: Mapping[str, Any]) -> float:
    """Return when a verified token ends, in seconds since 1970.

    Raises:
        CredentialError: that is no time: whole numbers in JSON may be larger than any float.
    """
    try:
        ends_s = float(claims["exp"])
    except (OverflowError, TypeError, ValueError):
        raise CredentialError(Cause.INCOMPLETE) from None
    if not math.isfinite(ends_s):
        raise CredentialError(Cause.INCOMPLETE)
    return ends_s


def _roles(claims: Mapping[str, Any], claim: str) -> frozenset[Role]:
    if not claim:
        return frozenset({Role.CLIENT})
    written = claims.get(claim, [])
    names = written.split() if isinstance(written, str) else written
    if not isinstance(names, list):
        raise CredentialError(Cause.INCOMPLETE)
    return frozenset(role for role in Role if role.value in names)
