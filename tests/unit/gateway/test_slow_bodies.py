"""Bodies that come slowly or not at all, sent byte by byte to a real server."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.unit.gateway.serving import http_server

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: door\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"content-length: 100\r\n\r\n",
        HEAD + b'content-length: 100\r\n\r\n{"prompt": ',
        HEAD + b'transfer-encoding: chunked\r\n\r\nb\r\n{"prompt": \r\n',
    ],
)
async def test_a_body_that_does_not_arrive_in_time_is_given_up(sent: bytes) -> None:
    async with http_server(body_timeout_s=0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(30.0):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2]) for line in head.lower().splitlines() if line.startswith(b"content-length")
            )
            body = json.loads(await reader.readexactly(length))
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert body["error"]["code"] == "body_timeout"
    assert body["error"]["message"] == "the body did not arrive within 0.1 s"
