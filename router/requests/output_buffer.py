"""The output of one request that its client has not read yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from services.rpc.errors import RequestError
from slos_serve.v1 import inference_pb2, sampling_pb2

StreamItem = inference_pb2.GenerateResponse | RequestError


class OutputBuffer:
    """Holds at most one message of tokens and the last message, however slowly the client reads.

    Tokens that come while others wait are joined to these. There is one reader, on the router's event loop.
    """

    __slots__ = ("_first_index", "_gathering", "_last", "_logprobs", "_text", "_token_ids", "_waiting", "_wake")

    def __init__(self) -> None:
        self._first_index = 0
        self._token_ids: list[int] = []
        self._text = ""
        self._logprobs: list[sampling_pb2.TokenLogprobs] = []
        self._waiting = False
        self._last: StreamItem | None = None
        self._wake: asyncio.Future[None] | None = None
        self._gathering: asyncio.Future[None] | None = None

    def put(
        self,
        index: int,
        token_ids: Iterable[int],
        text: str,
        logprobs: Sequence[sampling_pb2.TokenLogprobs] = (),
    ) -> None:
        """Add tokens, and the text that became certain with them.

        Args:
            index: position of the first of these tokens in the output.
            logprobs: one entry a token, or none at all.
        """
        if not self._waiting:
            self._waiting = True
            self._first_index = index
        self._token_ids += token_ids
        self._text += text
        if logprobs:
            self._logprobs += logprobs
        self._notify()

    def end(self, last: StreamItem) -> None:
        """Add the last message, or the error that the stream ends with; it is read after all tokens."""
        self._last = last
        self._notify()
        if self._gathering is not None:
            _settle(self._gathering)

    async def gather(self, pause_s: float) -> None:
        """Wait `pause_s` seconds for more tokens to come, or until there will be no more."""
        if self._last is not None:
            return
        loop = asyncio.get_running_loop()
        self._gathering = loop.create_future()
        timer = loop.call_later(pause_s, _settle, self._gathering)
        try:
            await self._gathering
        finally:
            timer.cancel()
            self._gathering = None

    async def next(self) -> StreamItem:
        """Return all tokens that wait, in one message; once there are none, wait for some or for the last message."""
        while not self._waiting and self._last is None:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        if not self._waiting:
            assert self._last is not None
            return self._last
        chunk = inference_pb2.TokenChunk(index=self._first_index, token_ids=self._token_ids, text=self._text)
        if self._logprobs:
            chunk.logprobs.extend(self._logprobs)
            self._logprobs = []
        self._token_ids, self._text, self._waiting = [], "", False
        return inference_pb2.GenerateResponse(tokens=chunk)

    def _notify(self) -> None:
        if self._wake is not None:
            _settle(self._wake)
            self._wake = None


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
