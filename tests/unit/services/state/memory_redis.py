"""A Redis in this process's memory, for the scripts of journal and unique keys, that fails when it is told to."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from services.state import journal, unique_keys
from services.state.connection import StateConnection, StateUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class _Commands:
    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    async def delete(self, *keys: str) -> int:
        return sum(self._texts.pop(key, None) is not None for key in keys)

    async def get(self, key: str) -> str | None:
        return self._texts.get(key)


class MemoryRedis(StateConnection):
    """Carries out what it is asked, unless `away`; with `lost_answers` it does so twice, as after a lost answer."""

    def __init__(self) -> None:
        super().__init__("redis://127.0.0.1:1/0", timeout_s=1.0)
        self.texts: dict[str, str] = {}
        self.written: list[list[str]] = []
        """Keys of each batch of journal entries."""
        self.ttls_ms: set[str] = set()
        self.away = False
        self.lost_answers = False

    async def evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        if self.away:
            raise StateUnavailableError(self.url, "away")
        ttl_ms, *texts = arguments
        self.ttls_ms.add(ttl_ms)
        if script == journal._WRITE:
            self.written.append(list(keys))
            self.texts.update(zip(keys, texts, strict=True))
            return None
        assert script == unique_keys._TAKE
        held: list[str | None] = []
        for _ in range(1 + self.lost_answers):
            held = [self.texts.get(key) for key in keys]
            for key, text in zip(keys, texts, strict=True):
                self.texts.setdefault(key, text)
        return held

    async def run(self, operation: Callable[[Any], Awaitable[Any]]) -> Any:
        if self.away:
            raise StateUnavailableError(self.url, "away")
        return await operation(_Commands(self.texts))

    def entry(self, key: str) -> dict[str, Any]:
        """The journal entry under a key, as it was written."""
        content: dict[str, Any] = json.loads(self.texts[key])
        return content


class SlowRedis(MemoryRedis):
    """Carries out scripts at once and answers when `answers` is set; away by then, it gives no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.asked = 0

    async def evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> object:
        answer = await super().evaluate(script, keys, arguments)
        self.asked += 1
        await self.answers.wait()
        if self.away:
            raise StateUnavailableError(self.url, "away")
        return answer
