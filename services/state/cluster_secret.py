"""A secret that all routers of a cluster share through Redis, so that nobody has to configure it."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from typing import cast

from services.state.connection import StateConnection, StateUnavailableError

SECRET_BYTES = 32
REFRESH_S = 10.0
"""Seconds between two looks at Redis, which may have lost its data meanwhile."""
RETRY_S = 0.5
"""Seconds between two looks while Redis does not answer."""

_HEXADECIMAL = re.compile(f"[0-9a-f]{{{2 * SECRET_BYTES}}}")
_AGREE = """
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and #held == #ARGV[1] and not string.find(held, '[^0-9a-f]') then return held end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""
"""Lua script that answers the secret, and sets it where there is none. KEYS is its key, ARGV the secret of who asks."""

_log = logging.getLogger(__name__)


class ClusterSecret:
    """The secret of the cluster, and until Redis answers a secret of this process alone. Never shown or logged."""

    def __init__(self, connection: StateConnection, prefix: str, name: str) -> None:
        """
        Args:
            name: what the secret is for; each purpose has its own.
        """
        self._connection = connection
        self._key = f"{prefix}:secret:{name}"
        self._value = secrets.token_bytes(SECRET_BYTES)

    def value(self) -> bytes:
        """Return the secret as it is now."""
        return self._value

    async def run(self) -> None:
        """Keep to what the other routers have, until cancelled.

        If Redis loses its data, the first router that looks puts its secret back, and all others take that.
        """
        while True:
            try:
                await self.agree()
            except StateUnavailableError:
                # The connection logs the loss of Redis, once.
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(REFRESH_S)

    async def agree(self) -> None:
        """Take the secret that the other routers have, or give them this one.

        Raises:
            StateUnavailableError
        """
        held = cast("str", await self._connection.evaluate(_AGREE, [self._key], [self._value.hex()]))
        if not _HEXADECIMAL.fullmatch(str(held)):
            _log.warning("what Redis holds under %s is no secret; this router keeps its own", self._key)
        else:
            self._value = bytes.fromhex(held)
