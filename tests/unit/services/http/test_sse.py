"""Streams of server-sent events, and what happens when their readers go or take nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from services.http.sse import ClientGoneError, SseResponse, event, unless_gone

Message = MutableMapping[str, Any]


class Reader:
    """The server's side of one connection: what was sent, and when the client goes."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.reads = True

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Chunks:
    """A stream of three chunks that says whether it was closed."""

    def __init__(self) -> None:
        self.closed = False
        self.more = asyncio.Event()

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            yield b"b"
            await self.more.wait()
            yield b"c"
        finally:
            self.closed = True


def test_an_event_is_one_line_of_json() -> None:
    assert event({"text": "é\n", "n": 1}) == 'data: {"text":"é\\n","n":1}\n\n'.encode()


async def test_a_stream_is_sent_as_it_comes_and_has_no_length() -> None:
    reader, chunks = Reader(), Chunks()
    serving = asyncio.create_task(SseResponse(chunks(), {"x-a": "1"})({}, reader.receive, reader.send))
    while reader.body != b"ab":  # noqa: ASYNC110 -- it takes a few turns of the loop
        await asyncio.sleep(0)
    assert not serving.done()
    chunks.more.set()
    await serving
    assert reader.body == b"abc"
    headers = dict(reader.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert (headers[b"x-a"], headers[b"cache-control"]) == (b"1", b"no-cache")
    assert b"content-length" not in headers
    assert [message.get("more_body") for message in reader.sent[1:]] == [True, True, True, False]
    assert chunks.closed


async def test_a_reader_that_goes_ends_its_stream() -> None:
    reader, chunks = Reader(), Chunks()
    serving = asyncio.create_task(SseResponse(chunks(), {})({}, reader.receive, reader.send))
    while reader.body != b"ab":  # noqa: ASYNC110 -- it takes a few turns of the loop
        await asyncio.sleep(0)
    reader.gone.set()
    await serving
    assert chunks.closed
    assert reader.body == b"ab"


async def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    reader, chunks = Reader(), Chunks()
    chunks.more.set()

    async def send(message: Message) -> None:
        reader.reads = len(reader.sent) < 2
        await reader.send(message)

    await SseResponse(chunks(), {}, send_patience_s=0.02)({}, reader.receive, send)
    assert chunks.closed
    assert reader.body == b"a"


async def test_work_for_a_client_that_goes_is_cancelled() -> None:
    reader = Reader()
    ended: list[str] = []

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return "never"

    waiting = asyncio.create_task(unless_gone(reader.receive, work()))
    await asyncio.sleep(0.01)
    reader.gone.set()
    with pytest.raises(ClientGoneError):
        await waiting
    assert ended == ["cancelled"]


async def test_work_that_is_done_is_answered_and_its_error_raised() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("broken")

    assert await unless_gone(Reader().receive, answer()) == 7
    with pytest.raises(ValueError, match="broken"):
        await unless_gone(Reader().receive, fail())
