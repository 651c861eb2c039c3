"""API keys: how they are made, what is kept of them, and how one is recognised."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.identity.principal import Principal, Role
from services.identity.refusal import Cause, CredentialError

SECRET_BYTES = 32
"""Bytes of randomness in a key: 256 bits, which nobody guesses, so that a plain hash of a key protects it."""
ID_BYTES = 8
"""Bytes of randomness in a key's public id."""
WRITTEN = re.compile(r"slos_(?P<id>[0-9a-f]{16})_[A-Za-z0-9_-]{43}")
"""A key as its owner has it: a prefix by which scanners find leaked ones, the public id, and the secret in base 64."""
TENANT = r"^[\x21-\x2e\x30-\x7e]{1,64}$"
"""Names that a tenant may have: printable ASCII without blanks, and without the slash that parts a tenant from a
request id."""


class ApiKey(BaseModel):
    """What the cluster keeps of an API key: never the key, only its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Public name of the key, which is part of it. It may be logged."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the whole key, in hexadecimal."""
    tenant: Annotated[str, Field(pattern=TENANT)]
    """Tenant to which everything belongs that is done with the key."""
    roles: Annotated[frozenset[Role], Field(min_length=1)]
    """Roles, which carry the key's rights."""
    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,128}$")] = ""
    """Name that people recognise the key by."""
    expires: AwareDatetime | None = None
    """Time from which the key is refused; None: never."""

    @property
    def principal(self) -> Principal:
        """Return whoever calls with this key."""
        return Principal(self.name or self.id, self.tenant, self.roles)

    def check(self, written: str, now: datetime) -> Principal:
        """Return whoever calls with this key.

        Args:
            written: the key as the caller wrote it.

        Raises:
            CredentialError: it is another key with the same id, or has expired.
        """
        if not hmac.compare_digest(hash_of(written), self.sha256):
            raise CredentialError(Cause.UNKNOWN)
        if self.expires is not None and now >= self.expires:
            raise CredentialError(Cause.EXPIRED)
        return self.principal


def hash_of(written: str) -> str:
    """Return the hash under which a key is kept."""
    return hashlib.sha256(written.encode()).hexdigest()


def make_key(
    tenant: str, roles: frozenset[Role], name: str = "", expires: datetime | None = None
) -> tuple[str, ApiKey]:
    """Make a new key. Return it as its owner is to have it, which is told once, and what is kept of it.

    Raises:
        ValueError: a name or a role is none.
    """
    key_id = secrets.token_hex(ID_BYTES)
    written = f"slos_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    return written, ApiKey(id=key_id, sha256=hash_of(written), tenant=tenant, roles=roles, name=name, expires=expires)
