"""What kind of request is likely to come next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

REMEMBERED = 256
REFRESHED_AFTER = 32

_Request = TypeVar("_Request")


class ArrivalSample(Generic[_Request]):
    """The latest requests, and the typical one of them: of median cost.

    Owned by one event loop.
    """

    def __init__(self, cost: Callable[[_Request], float]) -> None:
        """
        Args:
            cost: of a request for its value, in any unit.
        """
        self._cost = cost
        self._seen: deque[_Request] = deque(maxlen=REMEMBERED)
        self._noted = 0
        self._typical: _Request | None = None

    def note(self, request: _Request) -> None:
        """It came; noted once, with times counted from its arrival."""
        self._seen.append(request)
        if self._typical is None or self._noted % REFRESHED_AFTER == 0:
            by_cost = sorted(self._seen, key=self._cost)
            self._typical = by_cost[len(by_cost) // 2]
        self._noted += 1

    def typical(self) -> _Request | None:
        """None before the first."""
        return self._typical
