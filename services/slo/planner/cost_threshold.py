"""A price for admission: while not everybody finds room, the dearest requests leave room for others.

A promise to a request of ten times the work keeps ten others out. Who knew all arrivals would leave out the requests
that take most work for their value, and no more of them than there is no room for. What is learnt here is how many
those are: of the requests that are not promised, one half are priced out, the other half found no room at the price.
The second half is what is observed; the first follows it, and goes with it once everybody finds room.
`reserve_headroom` lets the dearer ones have what room is left beside `HEADROOM_REQUESTS`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from services.slo.planner.outcome import Binding

REMEMBERED = 256
FEWEST = 64
"""Requests from which a price is learnt."""
WINDOW_S = 60.0
"""A burst is forgotten after it."""
TOLERATED = 0.05
"""Share that may find no room before there is a price: a burst too dense for any plan makes nothing scarce for good."""
REFRESHED_AFTER = 16
HEADROOM_REQUESTS = 4.0
"""So many typical requests must still find room beside one that is dearer."""


@dataclass(slots=True)
class CostThreshold:
    """What a promise may cost, by the verdicts on the latest requests. Owned by one event loop."""

    _latest: deque[tuple[float, float, bool]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """When the verdict was reached, work for its value, and whether there was no room though it was worth its price."""
    _noted: int = 0
    _most: float = math.inf

    def settled(self, now_s: float, work_per_value: float, binding: Binding, *, late: bool) -> None:
        """The last word on a request that wanted a promise, and whether it is expected to be late without one.

        Who is in time all the same makes no price: promises are made by bounds, and nothing is scarce then.
        """
        self.note(now_s, work_per_value, found_no_room=late and binding not in {Binding.NONE, Binding.PRICE})

    def note(self, now_s: float, work_per_value: float, *, found_no_room: bool) -> None:
        """A verdict; `found_no_room`: though it was worth its price."""
        self._latest.append((now_s, work_per_value, found_no_room))
        self._noted += 1
        if self._noted % REFRESHED_AFTER == 0:
            self._most = self._learnt()

    def threshold(self, now_s: float) -> float:
        """Work for its value of the dearest request that need not leave room; infinite while everybody finds some."""
        latest = self._latest
        while latest and latest[0][0] < now_s - WINDOW_S:
            latest.popleft()
        return self._most if len(latest) >= FEWEST else math.inf

    def _learnt(self) -> float:
        without_room = sum(found_no_room for _, _, found_no_room in self._latest)
        dear = int(without_room - TOLERATED * len(self._latest))
        if dear <= 0:
            return math.inf
        return sorted(work for _, work, _ in self._latest)[-dear - 1]


@dataclass(frozen=True, slots=True)
class ReservedHeadroom:
    """Room for typical newcomers, left by whoever is promised something."""

    requests: float
    """So many of them."""
    cost_threshold: float
    """Who takes no more work for its value than this need not leave any."""


def reserved_headroom(requests: float, threshold: CostThreshold | None, now_s: float) -> ReservedHeadroom | None:
    """None: nobody leaves any.

    Args:
        requests: everybody leaves room for so many; 0: as the threshold says.
        threshold: None if there is to be none.
    """
    if requests:
        return ReservedHeadroom(requests, 0.0)
    cost_threshold = math.inf if threshold is None else threshold.threshold(now_s)
    return ReservedHeadroom(HEADROOM_REQUESTS, cost_threshold) if cost_threshold < math.inf else None
