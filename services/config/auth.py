"""The options of authentication: who may call, and how that is proven."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, model_validator

from services.config.section import Section
from services.network.address import is_loopback

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ALGORITHMS_ALLOWED: tuple[str, ...] = get_args(Algorithm)
"""All algorithms that can be allowed: those of `services.identity.tokens`, written out for the type checker."""


class AuthSettings(Section):
    """Who may call routers and gateways. Credentials are checked as soon as one source of them is named here."""

    keys_file: Path | None = None
    """File of API keys, which `slos-serve keys` writes and every router reads again when it changes. Unset: none."""
    keys_in_redis: bool = False
    """Accept the API keys that `slos-serve keys` keeps in Redis."""
    keys_grace_s: NonNegativeFloat = 300.0
    """Time that keys from Redis stay valid while Redis is away; then they are all refused. Seconds."""
    jwt_jwks: str = ""
    """File or https URL of the public keys (JWKS) of whoever issues JSON web tokens. Empty: tokens are refused."""
    jwt_issuer: str = ""
    """Issuer (`iss`) that a token must name."""
    jwt_audience: str = ""
    """Audience (`aud`) that a token must name: this cluster."""
    jwt_algorithms: tuple[Algorithm, ...] = Field(("RS256", "ES256", "EdDSA"), min_length=1)
    """Algorithms by which a token may be signed."""
    jwt_tenant_claim: str = Field("tenant", min_length=1)
    """Claim of a token that names its tenant."""
    jwt_roles_claim: str = "roles"
    """Claim of a token that lists its roles (`client`, `operator`, `admin`). Empty: every token is a client's."""
    jwt_leeway_s: float = Field(30.0, ge=0, le=300)
    """Time by which the clocks of the issuer and of this cluster may differ. Seconds."""
    insecure: bool = False
    """Let routers and gateways listen on other addresses than loopback though no credentials are checked, and workers
    though no certificates are: whoever reaches them may then use the cluster, cancel requests of others, see its state
    and read answers."""

    @property
    def on(self) -> bool:
        """Whether credentials are checked."""
        return self.keys_file is not None or self.keys_in_redis or bool(self.jwt_jwks)

    @model_validator(mode="after")
    def _tokens_are_all_or_nothing(self) -> Self:
        named = [bool(value) for value in (self.jwt_jwks, self.jwt_issuer, self.jwt_audience)]
        if any(named) and not all(named):
            raise ValueError("jwt_jwks, jwt_issuer and jwt_audience belong together; one of them is missing")
        if "://" in self.jwt_jwks:
            url = urlsplit(self.jwt_jwks)
            if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname or "")):
                raise ValueError("jwt_jwks: an https URL or a file; anybody on the way could forge what http brings")
        return self
