"""The sessions of the routers that are connected to a worker."""

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
    """One open stream with one router."""

    key: str
    """Key that is unique in this process; it names the owner of requests and leases."""
    router_id: str
    outbox: Outbox
    reported_s: float
    """Time at which the router was last told of the load, on the worker's clock."""
    holder: str = ""
    """Identity in the certificate of the router that opened the session; empty where routers show none."""


class SessionBook:
    """The open sessions of a worker.

    A session that is cut off stays in the book until `remove`, but `closed` is called at once.
    """

    def __init__(
        self,
        max_unread_events: int,
        closed: Callable[[RouterSession], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            closed: called with a session that `send` or `fail` has ended.
        """
        self._max_unread_events = max_unread_events
        self._closed = closed
        self._clock = clock
        self._by_key: dict[str, RouterSession] = {}
        self._opened = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[RouterSession]:
        """Iterate over a snapshot, so that sessions may end meanwhile."""
        return iter(tuple(self._by_key.values()))

    def open(self, router_id: str, holder: str = "") -> RouterSession:
        """Add a session for a router."""
        self._opened += 1
        outbox = Outbox(self._max_unread_events, self._clock)
        # The number comes first: what a router calls itself cannot make its key the beginning of another's.
        session = RouterSession(f"{self._opened}#{router_id}", router_id, outbox, self._clock(), holder)
        self._by_key[session.key] = session
        return session

    def find(self, key: str) -> RouterSession | None:
        """Return the session with this key, or None if it is over."""
        return self._by_key.get(key)

    def remove(self, session: RouterSession) -> bool:
        """Remove a session. Return False if it was removed before."""
        return self._by_key.pop(session.key, None) is not None

    def send(self, session: RouterSession, message: worker_pb2.SessionResponse) -> None:
        """Queue a message for a router; a router that does not read is cut off."""
        session.outbox.put(message)
        if session.outbox.error is not None:
            _log.warning("router %s is cut off: %s", session.router_id, session.outbox.error)
            self._closed(session)

    def fail(self, session: RouterSession, error: RequestError) -> None:
        """End a session with an error, and drop the messages that its router has not read."""
        session.outbox.fail(error)
        self._closed(session)
