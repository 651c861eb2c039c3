"""The gateway's HTTP endpoints, called as an ASGI server calls them."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz import documents, values
from tests.fuzz.doors import PATIENCE_S
from tests.fuzz.targets import Frames, Target
from tests.fuzz.watch import FaultError

HEADERS = (
    *("content-type", "accept", "authorization", "x-request-id", "x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-profile"),
    *("x-slo-on-overload", "x-tenant-id", "x-slo-application", "traceparent", "tracestate", "content-length", "expect"),
)
PATHS = ("/v1/models", "/health", "/ping", "/", "/v1", "/v1/../health", "/metrics", "/v1/completions/", "/%00", "/docs")
METHODS = ("GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE", "X")
STAYS_S = 5.0
"""Seconds after which a client leaves that has not had its answer."""
REFUSED = 400
BROKEN = frozenset({500})

COMPLETIONS: tuple[dict[str, Any], ...] = (
    {"prompt": "hello", "max_tokens": 3},
    {"model": "tiny", "prompt": [20, 21, 22], "max_tokens": 2, "stream": True, "stop": ["a", "b"], "logprobs": 2},
    {"prompt": ["hello"], "max_tokens": 2, "logit_bias": {"40": 1}, "seed": 3, "echo": False, "n": 1, "user": "u"},
    {"prompt": "x", "max_tokens": 2, "slo": {"ttft_ms": 2000, "tpot_ms": 200, "profile": "chat"}, "top_k": 3},
)
CHATS: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3},
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "max_completion_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "logprobs": True,
        "top_logprobs": 2,
    },
    {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "slo": {"stages": [{"prefill": {"ttft_s": 2.0}}, {"decode": {"tpot_s": 0.2}}], "session_id": "s1"},
        "response_format": {"type": "text"},
        "tools": [],
    },
)


@dataclass(slots=True)
class HttpTarget:
    """One endpoint that takes a document."""

    app: Any
    path: str
    seeds: Sequence[dict[str, Any]]
    share: int
    name: str

    def make(self, rng: Random) -> Frames:
        return (documents.mutated(rng.choice(self.seeds), rng),)

    async def send(self, frames: Frames, rng: Random) -> str:
        return await request(self.app, "POST", self.path, headers(rng), frames[0], rng)


@dataclass(slots=True)
class PathTarget:
    """Every other path, with any method."""

    app: Any
    share: int
    name: str = "HTTP, other paths"

    def make(self, rng: Random) -> Frames:
        path = rng.choice(PATHS) if rng.random() < 0.7 else "/" + values.text(rng)[:3000]
        return (rng.choice(METHODS).encode(), path.encode("utf-8", "replace"))

    async def send(self, frames: Frames, rng: Random) -> str:
        return await request(self.app, frames[0].decode(), frames[1].decode(), headers(rng), b"", rng)


def headers(rng: Random) -> list[tuple[bytes, bytes]]:
    """Return headers as an HTTP parser lets them through: any bytes but line breaks and NUL."""
    pairs = []
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        value = values.text(rng)[:4000].encode("utf-8", "replace").translate(None, b"\r\n\x00").strip()
        pairs.append((rng.choice(HEADERS).encode(), value))
    return pairs


async def request(app: Any, method: str, path: str, sent: list[tuple[bytes, bytes]], body: bytes, rng: Random) -> str:
    """Send one request as a client that may leave; return the status, and the code of an error.

    Raises:
        FaultError: the answer is none that a client may get.
    """
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode("utf-8", "replace"), "root_path": "", "query_string": b"a=%00&b",
        "headers": sent, "client": ("127.0.0.1", 40000), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip
    exchange = _Exchange(body, parts=rng.randrange(1, 4), leaves_after=rng.choice((0, 1, 3, 10**6, 10**6)))
    # A whole text may be a long one: the client leaves, and the application must notice.
    asyncio.get_running_loop().call_later(STAYS_S, exchange.leave)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await app(scope, exchange.receive, exchange.send)
    except TimeoutError:
        raise FaultError(f"no answer within {PATIENCE_S:g} s") from None
    except asyncio.CancelledError:
        raise
    except Exception as error:
        raise FaultError("the application raised " + "".join(traceback.format_exception(error))[-4000:]) from error
    return exchange.outcome(method)


class _Exchange:
    """One request and its answer, as an ASGI server passes them on."""

    def __init__(self, body: bytes, parts: int, leaves_after: int) -> None:
        size = len(body) // parts + 1
        self._parts = [body[at : at + size] for at in range(0, max(1, len(body)), size)]
        self._leaves_after = leaves_after
        self._status = 0
        self._answer = bytearray()
        self._sent = 0
        self._gone = asyncio.Event()

    def leave(self) -> None:
        """Let the client be gone."""
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            for name, value in message["headers"]:
                if b"\n" in value or b"\r" in value or b"\x00" in value or not isinstance(name, bytes):
                    raise FaultError(f"header {name!r}: {value!r}"[:500])
            if self._leaves_after == 0:
                self._gone.set()
            return
        self._sent += 1
        self._answer += message.get("body", b"")
        if self._sent >= self._leaves_after or not message.get("more_body", False):
            self._gone.set()

    def outcome(self, method: str) -> str:
        """Return the status, and the code of an error.

        Raises:
            FaultError: the status says that the gateway is at fault, or the error is not in OpenAI's form.
        """
        if not self._status:
            raise FaultError("no answer")
        text = self._answer.decode("utf-8", "replace")
        if self._status in BROKEN:
            raise FaultError(f"{self._status}: {text}"[:1000])
        if self._status < REFUSED or method == "HEAD" or not text:
            return str(self._status)
        try:
            return f"{self._status} {json.loads(text)['error']['code']}"
        except (ValueError, KeyError, TypeError) as error:
            raise FaultError(f"{self._status} with no error that a program can read: {text}"[:1000]) from error


def http_targets(app: Any) -> list[Target]:
    """Return the targets that are the gateway's."""
    return [
        HttpTarget(app, "/v1/completions", COMPLETIONS, 70, "HTTP completions"),
        HttpTarget(app, "/v1/chat/completions", CHATS, 70, "HTTP chat"),
        PathTarget(app, 20),
    ]
