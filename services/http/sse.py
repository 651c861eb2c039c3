"""Streams of server-sent events that end when their readers go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Answer = TypeVar("Answer")

DONE = b"data: [DONE]\n\n"
NOT_BUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ClientGoneError(Exception):
    """The client closed its connection, so that nobody is left to answer."""


def event(content: Mapping[str, Any]) -> bytes:
    """Write one event."""
    return (
        b"data: " + json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"
    )


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Wait for `work` and return its result; cancel it if the client goes first.

    Raises:
        ClientGoneError: the client closed its connection first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class SseResponse(Response):
    """Sends a body in chunks as they come. It waits while the reader's buffers are full: nothing piles up here."""

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str], send_patience_s: float | None = None
    ) -> None:
        """
        Args:
            send_patience_s: seconds without progress after which a reader is cut off; None: never.
        """
        super().__init__(headers={**NOT_BUFFERED, **headers})
        del self.headers["content-length"]
        self._chunks = chunks
        self._send_patience_s = send_patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send_all(send))
        except (ClientGoneError, OSError, TimeoutError):
            # Nobody is left to answer. Leaving `_send_all` has cancelled the request at the router.
            return

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in chunks:
                async with asyncio.timeout(self._send_patience_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
