"""Sets of keys over HTTP, from issuers that are slow, endless or broken: the answers come from a real server."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from services.identity.jwks import Jwks
from services.identity.jwks_source import MAX_BYTES, JwksError, fetch_jwks
from tests.support.tokens import Issuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]

ISSUER = Issuer("key-1")
SET = json.dumps(ISSUER.jwks()).encode()
DRIPS = (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"), (b"HTTP/1.1 200 OK\r\n\r\n", b" ")
"""Starts of answers, and what then comes a little at a time: headers without end, and a body without end."""


class Web:
    """A web server on this machine, whose answers are written as they are told."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.paths: list[str] = []
        self.left = asyncio.Event()
        """Set when a client has left before its answer ended."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve, and yield the URL of the keys."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.paths.append(request.split()[1].decode())
        try:
            await self.answer(writer)
        except OSError:
            self.left.set()
        finally:
            writer.close()


def whole(content: bytes, status: str = "200 OK", *headers: str) -> Answer:
    """Answer at once."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", "connection: close", *headers, "", ""]

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + content)
        await writer.drain()

    return answer


def dripping(start: bytes, drop: bytes) -> Answer:
    """Start an answer, and then write a little from time to time, until the client leaves."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.02)

    return answer


async def without_end(writer: asyncio.StreamWriter) -> None:
    """Write a body as fast as the client takes it."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def test_keys_come_over_http_and_no_redirect_is_followed() -> None:
    web = Web(whole(SET))
    async with web.running() as url:
        keys = Jwks(url)
        assert await keys.key("key-1") is not None
        web.answer = whole(b"", "302 Found", "location: /elsewhere")
        await keys.refresh()
        assert web.paths == ["/keys", "/keys"]
        web.answer = whole(b"<html>")
        await keys.refresh()
        assert keys.faults == 2
        assert await keys.key("key-1") is not None


@pytest.mark.parametrize(("start", "drop"), DRIPS)
async def test_an_issuer_that_drips_is_left_after_the_deadline(start: bytes, drop: bytes) -> None:
    web = Web(dripping(start, drop))
    async with web.running() as url:
        keys = Jwks(url, fetch_timeout_s=0.5)
        async with asyncio.timeout(30):
            await keys.refresh()
            await web.left.wait()
        assert keys.faults == 1


async def test_an_answer_is_read_up_to_a_bound() -> None:
    web = Web(without_end)
    async with web.running() as url, asyncio.timeout(30):
        with pytest.raises(JwksError, match=f"more than {MAX_BYTES} bytes"):
            await fetch_jwks(url)
        await web.left.wait()
        web.answer = whole(SET.ljust(MAX_BYTES))
        assert await fetch_jwks(url) == ISSUER.jwks()
        web.answer = whole(SET.ljust(MAX_BYTES + 1))
        with pytest.raises(JwksError, match="more than"):
            await fetch_jwks(url)


async def test_what_is_no_answer_is_an_error() -> None:
    async def nothing(_: asyncio.StreamWriter) -> None:
        pass

    async def no_http(writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\xff\r\n\r\n")

    packed = whole(gzip.compress(SET), "200 OK", "content-encoding: gzip")
    answers: tuple[Any, ...] = (nothing, no_http, packed, whole(SET, "500 Oops"), whole(SET, "204 No Content"))
    web = Web(nothing)
    async with web.running() as url, asyncio.timeout(30):
        for web.answer in answers:
            with pytest.raises((JwksError, ValueError)):
                await fetch_jwks(url)
    with pytest.raises(JwksError):
        await fetch_jwks(url)
    for wrong in ("http://[", "gopher://issuer.example/keys", "http://"):
        with pytest.raises(JwksError):
            await fetch_jwks(wrong)
