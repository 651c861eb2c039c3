"""A body is taken up to the limit to the byte, and an answer that has begun is not followed by another."""

from __future__ import annotations

import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.limit import BodyLimit

LIMIT_BYTES = 10


class Door:
    """An application behind the limit, and what it received and answered."""

    def __init__(self, *, answers_first: bool = False) -> None:
        self.received: list[bytes] = []
        self.answered: list[Message] = []
        self._answers_first = answers_first

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._answers_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            self.received.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def call(self, *parts: bytes, announced: str | None = None, kind: str = "http") -> None:
        messages = [
            {"type": "http.request", "body": part, "more_body": at < len(parts) - 1} for at, part in enumerate(parts)
        ]
        headers = [] if announced is None else [(b"content-length", announced.encode())]

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            self.answered.append(message)

        scope = {"type": kind, "headers": [(b"accept", b"99"), *headers], "method": "POST", "path": "/"}
        await BodyLimit(self.app, LIMIT_BYTES)(scope, receive, send)

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.answered if message["type"] == "http.response.start"]


@pytest.mark.parametrize("parts", [(b"x" * 10,), (b"x" * 6, b"x" * 4), (b"",)])
async def test_a_body_of_exactly_the_limit_is_taken(parts: tuple[bytes, ...]) -> None:
    door = Door()
    await door.call(*parts, announced=str(sum(map(len, parts))))
    assert tuple(door.received) == parts
    assert door.statuses == [204]


@pytest.mark.parametrize("parts", [(b"x" * 11,), (b"x" * 6, b"x" * 5)])
@pytest.mark.parametrize("announced", [None, "5", "soon"])
async def test_one_byte_more_is_refused(parts: tuple[bytes, ...], announced: str | None) -> None:
    door = Door()
    await door.call(*parts, announced=announced)
    assert sum(map(len, door.received)) <= LIMIT_BYTES
    assert door.statuses == [413]


async def test_a_body_that_announces_too_much_is_not_read() -> None:
    door = Door()
    await door.call(b"x", announced="11")
    assert door.received == []
    assert door.statuses == [413]


async def test_after_the_answer_has_begun_there_is_no_second_one() -> None:
    door = Door(answers_first=True)
    await door.call(b"x" * 11)
    assert door.statuses == [200]


async def test_what_is_no_request_passes_through() -> None:
    door = Door()
    await door.call(b"x" * 11, announced="11", kind="websocket")
    assert door.received == [b"x" * 11]
