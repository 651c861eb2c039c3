"""What kind of request is likely to come next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

REMEMBERED: Final = 256
"""Number of requests that are remembered. Chosen: enough for a steady median, few enough to follow the traffic."""
REFRESHED_AFTER: Final = 32
"""Number of requests after which the median is taken again. Chosen: a sort of so few costs nothing then."""

_Request = TypeVar("_Request")


class ArrivalSample(Generic[_Request]):
    """A sample of the latest requests that knows the typical one of them: that of median cost.

    One event loop owns it.
    """

    def __init__(self, cost: Callable[[_Request], float]) -> None:
        """
        Args:
            cost: gives the cost of a request for its value, in any unit.
        """
        self._cost = cost
        self._seen: deque[_Request] = deque(maxlen=REMEMBERED)
        self._noted = 0
        self._typical: _Request | None = None

    def note(self, request: _Request) -> None:
        """Remember a request that came. Call this once for each, with times counted from its arrival."""
        self._seen.append(request)
        if self._typical is None or self._noted % REFRESHED_AFTER == 0:
            by_cost = sorted(self._seen, key=self._cost)
            self._typical = by_cost[len(by_cost) // 2]
        self._noted += 1

    def typical(self) -> _Request | None:
        """Return the request of median cost; None before the first."""
        return self._typical
