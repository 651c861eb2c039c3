"""The queue of messages that wait for one router to read them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from services.rpc.errors import OverloadedError, RequestError
from services.wire import age_leases
from slos_serve.v1 import worker_pb2


class Outbox:
    """A bounded queue of messages for one session, with one reader.

    A router that leaves `capacity` messages unread is cut off with RESOURCE_EXHAUSTED: it would act on a past that is
    long over, and a worker's memory must not depend on its routers. Leases run on while a message waits, so that a
    message that is read gives the time that is left then.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.error: RequestError | None = None
        """The error that closed the outbox; None while it is open, and after an orderly end."""
        self.closed = False
        self._capacity = capacity
        self._clock = clock
        self._waiting: deque[tuple[worker_pb2.SessionResponse, float]] = deque()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: worker_pb2.SessionResponse) -> None:
        """Queue a message. A full outbox is closed with an error; a closed one drops the message."""
        if self.closed:
            return
        if len(self._waiting) >= self._capacity:
            self.fail(OverloadedError(f"the router left {self._capacity} events unread", field="session"))
            return
        self._waiting.append((message, self._clock()))
        self._wake.set()

    def end(self) -> None:
        """Close the outbox in order: queued messages can still be read."""
        self.closed = True
        self._wake.set()

    def fail(self, error: RequestError) -> None:
        """Close the outbox at once and drop queued messages. If it is called twice, the first error stands."""
        if not self.closed:
            self.error = error
        self.closed = True
        self._waiting.clear()
        self._wake.set()

    async def messages(self) -> AsyncIterator[worker_pb2.SessionResponse]:
        """Yield messages as they are queued, until the outbox is closed."""
        while True:
            while self._waiting:
                message, queued_s = self._waiting.popleft()
                # A report with outputs belongs to this outbox alone. Others are shared and must not be changed.
                if message.HasField("step") and message.step.outputs:
                    age_leases(message.step, self._clock() - queued_s)
                yield message
            if self.closed:
                return
            self._wake.clear()
            await self._wake.wait()
