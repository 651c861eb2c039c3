"""The public keys of whoever issues tokens (JWKS), from a file or an https URL, kept up to date."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from jwt import PyJWK, PyJWKSet, PyJWTError

from services.identity.jwks_source import JwksError, fetch_jwks

REFRESH_S = 300.0
"""Seconds after which the keys are fetched again unasked, so that a withdrawn key is noticed."""
MIN_FETCH_INTERVAL_S = 10.0
"""Seconds between two fetches at least, however many tokens name keys that are not known: anybody can write such a
token."""
MAX_AGE_S = 3600.0
"""Seconds that fetched keys are used while they cannot be fetched again. Tokens seldom live longer, and whoever cannot
be asked for keys issues no new ones."""
FETCH_TIMEOUT_S = 5.0
"""Seconds that one fetch takes at most, from its start to the last byte of the answer. Tokens with an unknown key wait
no longer than this, however slowly the issuer answers."""
MAX_KEYS = 100
"""Keys that are taken from one set at most: issuers have a handful."""

_FAULTS = (
    *(JwksError, PyJWTError, UnsupportedAlgorithm, OSError, ValueError, TypeError, AttributeError, ArithmeticError),
    RuntimeError,
)
"""What a source that is away or broken raises, and what the libraries raise for sets that hold anything."""

_log = logging.getLogger(__name__)


class Jwks:
    """The public keys by which tokens are verified. Symmetric keys are left out: who can verify with one can forge."""

    def __init__(
        self,
        source: str,
        *,
        min_fetch_interval_s: float = MIN_FETCH_INTERVAL_S,
        refresh_s: float = REFRESH_S,
        max_age_s: float = MAX_AGE_S,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        fetch: Callable[[str], Awaitable[Any]] = fetch_jwks,
    ) -> None:
        """Fetch nothing yet.

        Args:
            source: an https URL, or the path of a file.
            clock: seconds on a clock that never runs backwards.
            fetch: returns the JSON of a set. It is cancelled after `fetch_timeout_s`.
        """
        self.faults = 0
        """Times that the keys could not be fetched."""
        self.generation = 0
        """Number of fetches that have changed the keys: what was verified before need not be valid any more."""
        self._source = source
        self._min_fetch_interval_s = min_fetch_interval_s
        self._refresh_s = refresh_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._fetch_timeout_s = fetch_timeout_s
        self._fetch = fetch
        self._keys: Mapping[str | None, PyJWK] = {}
        self._written: object = None
        self._tried_s: float | None = None
        self._fetched_s: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, key_id: str | None) -> PyJWK | None:
        """Return the key with an id, or the only key for a token that names none; None if there is none.

        A key that is not known may be new, so that the set is fetched again, unless that was done a moment ago.
        """
        known = self._known(key_id)
        if known is None and self._may_fetch():
            await self.refresh()
            known = self._known(key_id)
        return known

    async def refresh(self) -> None:
        """Fetch the keys, or wait until somebody else's fetch has ended. A failure is logged and counted."""
        if self._fetching is None:
            self._tried_s = self._clock()
            self._fetching = asyncio.create_task(self._refresh(), name="jwks")
        # A client that leaves must not end the fetch that others wait for.
        await asyncio.shield(self._fetching)

    async def run(self) -> None:
        """Keep the keys up to date until cancelled."""
        while True:
            before = self.faults
            await self.refresh()
            await asyncio.sleep(self._refresh_s if self.faults == before else self._min_fetch_interval_s)

    @property
    def usable(self) -> bool:
        """Whether keys were fetched, not too long ago."""
        return self._fetched_s is not None and self._clock() - self._fetched_s <= self._max_age_s

    def _known(self, key_id: str | None) -> PyJWK | None:
        if not self.usable:
            return None
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _may_fetch(self) -> bool:
        if self._fetching is not None or self._tried_s is None:
            return True
        return self._clock() - self._tried_s >= self._min_fetch_interval_s

    async def _refresh(self) -> None:
        tried_s = self._clock()
        try:
            async with asyncio.timeout(self._fetch_timeout_s):
                written = await self._fetch(self._source)
            keys = _verification_keys(written)
        # Nothing in a set may end the process: an id that is a list, or nesting without end, is one more fault.
        except _FAULTS as error:
            self.faults += 1
            _log.error("keys of the issuer of tokens: %s: %s", self._source, str(error) or type(error).__name__)
            return
        finally:
            self._fetching = None
        if written != self._written:
            self.generation += 1
            _log.info("keys of the issuer of tokens: %d", len(keys))
        self._written, self._keys, self._fetched_s = written, keys, tried_s


def _verification_keys(written: Any) -> dict[str | None, PyJWK]:
    """Return the public keys of a set that may verify signatures.

    Raises:
        JwksError, PyJWTError: there is none.
    """
    if not isinstance(written, dict) or not isinstance(written.get("keys"), list):
        raise JwksError("no set of keys")
    public = [
        key
        for key in written["keys"][:MAX_KEYS]
        if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"
    ]
    if not public:
        raise JwksError("holds no public key that verifies signatures")
    return {key.key_id: key for key in PyJWKSet(public)}
