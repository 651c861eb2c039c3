"""Authentication: the value of an `authorization` header becomes a principal, or is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from services.identity.api_key import WRITTEN, ApiKey
from services.identity.principal import Principal
from services.identity.refusal import Cause, CredentialError
from services.identity.tokens import TokenVerifier

AUTHORIZATION = "authorization"
"""Name of the HTTP header, and of the metadata of a gRPC call, that carries a credential."""
SCHEME = "bearer"
MAX_CHARACTERS = 8192
"""Length of the longest credential that is looked at: 8 KiB is what gRPC takes as metadata by default."""


class KeySource(Protocol):
    """API keys, wherever they are kept. Whoever has one keeps it up to date by `run`."""

    faults: int
    """Times that the keys could not be read again."""

    def find(self, key_id: str) -> ApiKey | None:
        """Return the key with an id; None if there is none."""

    async def run(self) -> None:
        """Keep the keys up to date until cancelled."""


class Authenticator:
    """Finds out who calls, by API keys and tokens."""

    def __init__(
        self,
        sources: Sequence[KeySource],
        tokens: TokenVerifier | None,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            sources: asked for a key in this order.
            tokens: None: tokens are refused.
            clock: seconds since 1970.
        """
        self.refused: Counter[Cause] = Counter()
        """Number of refused credentials by cause."""
        self._sources = tuple(sources)
        self._tokens = tokens
        self._clock = clock

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return whoever calls with the value of an `authorization` header; None: without one.

        Raises:
            CredentialError: the credential is not valid.
        """
        try:
            return await self._authenticate(authorization)
        except CredentialError as error:
            self.refused[error.cause] += 1
            raise

    async def run(self) -> None:
        """Keep keys up to date until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for source in self._sources:
                tasks.create_task(source.run())
            if self._tokens is not None:
                tasks.create_task(self._tokens.run())
            # A task group without tasks would end at once, and so would the process that waits for its tasks.
            await asyncio.Event().wait()

    @property
    def faults(self) -> int:
        """Times that keys, or the keys of the issuer of tokens, could not be read again."""
        return sum(source.faults for source in self._sources) + (0 if self._tokens is None else self._tokens.faults)

    async def _authenticate(self, authorization: str | None) -> Principal:
        if not authorization:
            raise CredentialError(Cause.MISSING)
        scheme, _, written = authorization.partition(" ")
        written = written.strip(" ")
        if len(authorization) > MAX_CHARACTERS or scheme.lower() != SCHEME or not written.isascii():
            raise CredentialError(Cause.MALFORMED)
        if written.startswith("slos_"):
            return self._by_key(written)
        if self._tokens is None:
            raise CredentialError(Cause.MALFORMED)
        return await self._tokens.verify(written)

    def _by_key(self, written: str) -> Principal:
        parts = WRITTEN.fullmatch(written)
        if parts is None:
            raise CredentialError(Cause.MALFORMED)
        for source in self._sources:
            key = source.find(parts["id"])
            if key is not None:
                return key.check(written, datetime.fromtimestamp(self._clock(), UTC))
        raise CredentialError(Cause.UNKNOWN)
