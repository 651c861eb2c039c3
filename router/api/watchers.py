"""The places of those who watch the state of the cluster at one router process."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from services.identity.principal import Principal, Right
from services.rpc.errors import OverloadedError

MAX_WATCHERS = 100
"""Callers that may watch the cluster at the same time."""
MAX_WATCHERS_OF_TENANT = 16
"""Callers of one tenant, without the right to observe the cluster, that may watch at the same time: more than one for
each program of a tenant is waste, and a few busy tenants fit beside each other."""
PLACES_OF_OBSERVERS = 20
"""Places, of `MAX_WATCHERS`, that are kept for callers with the right to observe the cluster: operators must see it
however many clients watch."""
RETRY_AFTER_S = 10.0
"""Seconds after which a caller that found no place may try again."""


class Watchers:
    """Gives out the places.

    Where no credentials are checked whoever calls may observe the cluster, and only `MAX_WATCHERS` holds.
    """

    def __init__(self) -> None:
        self._observers = 0
        self._clients: Counter[str] = Counter()
        """Callers without the right to observe, by tenant; no tenant has 0."""

    @contextlib.contextmanager
    def place(self, principal: Principal) -> Iterator[None]:
        """Hold a place while a caller watches.

        Raises:
            OverloadedError: no place is free for this caller.
        """
        if principal.may(Right.OBSERVE):
            self._check_room(MAX_WATCHERS)
            self._observers += 1
            try:
                yield
            finally:
                self._observers -= 1
            return
        tenant = principal.tenant
        if self._clients[tenant] >= MAX_WATCHERS_OF_TENANT:
            raise OverloadedError(
                f"{MAX_WATCHERS_OF_TENANT} clients of this tenant watch already", retry_after_s=RETRY_AFTER_S
            )
        self._check_room(MAX_WATCHERS - PLACES_OF_OBSERVERS)
        self._clients[tenant] += 1
        try:
            yield
        finally:
            self._clients[tenant] -= 1
            if not self._clients[tenant]:
                del self._clients[tenant]

    def _check_room(self, places: int) -> None:
        if self._observers + self._clients.total() >= places:
            raise OverloadedError(f"{places} clients watch already", retry_after_s=RETRY_AFTER_S)
