"""The routers that are connected."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from services.rpc.errors import RequestError
from services.worker.outbox import Outbox
from slos_serve.v1 import worker_pb2

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class RouterSession:
    """One stream with one router."""

    key: str
    """Unique in this process; names the owner of requests and leases."""
    router_id: str
    outbox: Outbox
    reported_s: float
    """When it was last told of the load, on the monotonic clock."""


class SessionBook:
    """The open sessions. One that is cut off stays in the book until `remove`; `closed` is told at once."""

    def __init__(
        self,
        max_unread_events: int,
        closed: Callable[[RouterSession], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            closed: told of a session that `send` or `fail` has ended.
        """
        self._max_unread_events = max_unread_events
        self._closed = closed
        self._clock = clock
        self._by_key: dict[str, RouterSession] = {}
        self._opened = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[RouterSession]:
        """A snapshot: sessions may end while it is walked."""
        return iter(tuple(self._by_key.values()))

    def open(self, router_id: str) -> RouterSession:
        self._opened += 1
        outbox = Outbox(self._max_unread_events, self._clock)
        session = RouterSession(f"{router_id}#{self._opened}", router_id, outbox, self._clock())
        self._by_key[session.key] = session
        return session

    def find(self, key: str) -> RouterSession | None:
        return self._by_key.get(key)

    def remove(self, session: RouterSession) -> bool:
        """False if it was removed before."""
        return self._by_key.pop(session.key, None) is not None

    def send(self, session: RouterSession, message: worker_pb2.SessionResponse) -> None:
        session.outbox.put(message)
        if session.outbox.error is not None:
            _log.warning("router %s is cut off: %s", session.router_id, session.outbox.error)
            self._closed(session)

    def fail(self, session: RouterSession, error: RequestError) -> None:
        """End a session with an error; what it has not read is dropped."""
        session.outbox.fail(error)
        self._closed(session)
