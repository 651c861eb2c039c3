"""Redis keys that only one router of the cluster can set, gathered so that many share one round trip."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from services.state.connection import StateConnection, StateUnavailableError

GATHER_S = 5e-3
"""Seconds from the beginning of one round trip to the next, at least. A round trip costs the router several times what
one key in it costs."""

_TAKE = """
local held = {}
for i, key in ipairs(KEYS) do
  local before = redis.pcall('SET', key, ARGV[i + 1], 'NX', 'GET', 'PX', ARGV[1])
  held[i] = type(before) == 'table' and before.err or before
end
return held
"""
"""Lua script that sets each key unless it is set already, and answers the text that each key had before, if any.

For a key whose value is no text it answers why it cannot be read.

KEYS are the keys to set. ARGV are the time to live in ms and then one text for each key.
"""


@dataclass(slots=True)
class _Wanted:
    key: str
    text: str
    held: asyncio.Future[str | None]


class UniqueKeys:
    """Sets keys that are not set yet. Instances belong to one event loop."""

    def __init__(self, connection: StateConnection, ttl_ms: int) -> None:
        self._connection = connection
        self._ttl_ms = ttl_ms
        self._wanted: list[_Wanted] = []
        self._sending: asyncio.Task[None] | None = None
        self._next_s = 0.0
        """Earliest beginning of the next round trip, on the event loop's clock."""

    async def take(self, key: str, text: str) -> str | None:
        """Set a key to a text. Return None if it is set now, or else the text that it had already.

        Raises:
            StateUnavailableError: Redis does not answer; the key may be set or not.
        """
        wanted = _Wanted(key, text, asyncio.get_running_loop().create_future())
        self._wanted.append(wanted)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="unique keys")
        return await wanted.held

    async def _send(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            while self._wanted:
                if (wait_s := self._next_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                self._next_s = loop.time() + GATHER_S
                batch, self._wanted = self._wanted, []
                await self._settle(batch)
        finally:
            self._sending = None

    async def _settle(self, batch: list[_Wanted]) -> None:
        keys, texts = [wanted.key for wanted in batch], [wanted.text for wanted in batch]
        try:
            answer = await self._connection.evaluate(_TAKE, keys, [str(self._ttl_ms), *texts])
        except StateUnavailableError as error:
            for wanted in batch:
                if not wanted.held.done():
                    wanted.held.set_exception(error)
            return
        for wanted, text in zip(batch, cast("list[str | None]", answer), strict=True):
            if not wanted.held.done():
                wanted.held.set_result(text)
