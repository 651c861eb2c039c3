"""A feed of frames, made at an interval for any number of readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable


class Feed:
    """Makes a frame at an interval while somebody reads, and hands every reader the newest.

    A slow reader misses frames; nothing waits for it.
    """

    def __init__(self, make: Callable[[], bytes], interval_s: float) -> None:
        self.readers = 0
        self.made = 0
        """Number of frames made so far."""
        self._make = make
        self._interval_s = interval_s
        self._frame = b""
        self._next = asyncio.Event()
        """Event that is set, and replaced, with every frame."""
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield a frame at once, then each one that comes while the reader is ready, until the feed is closed."""
        self.readers += 1
        try:
            if self._task is None:
                self._frame = b""
                self._task = asyncio.create_task(self._run(), name="console feed")
            seen = 0
            while True:
                if seen == self.made or not self._frame:
                    await self._next.wait()
                if self._closed:
                    return
                seen = self.made
                yield self._frame
        finally:
            self.readers -= 1
            if not self.readers:
                await self._rest()

    async def close(self) -> None:
        """End every stream."""
        self._closed = True
        await self._rest()
        self._next.set()

    async def _rest(self) -> None:
        """Make no more frames until somebody reads again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._frame = self._make()
            self.made += 1
            self._next.set()
            self._next = asyncio.Event()
            await asyncio.sleep(self._interval_s)
