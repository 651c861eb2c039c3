"""The cost above which a request must leave headroom: while not everybody finds room, the costliest give way.

A promise to a request of ten times the work keeps ten others out. Who knew all arrivals would leave out the requests
that take most work for their value, and no more of them than there is no room for. What is learnt here is how many
those are: of the requests that are not promised, one half are above the threshold, the other half found no room below
it. The second half is what is observed; the first follows it, and goes with it once everybody finds room. Those above
the threshold get what is left beside headroom for `HEADROOM_REQUESTS` typical arrivals: see `kernels.reserve`.

docs/decisions/2026-11-29-a-price-for-admission.md has the measurements.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from services.slo.planner.outcome import Binding

REMEMBERED: Final = 256
"""Number of verdicts that are remembered. Chosen."""
FEWEST: Final = 64
"""Number of verdicts below which there is no threshold. Chosen: fewer say little about a share."""
WINDOW_S: Final = 60.0
"""Seconds after which a verdict is forgotten. Chosen: a burst is over then."""
TOLERATED: Final = 0.05
"""Share of requests that may find no room before there is a threshold: a burst too dense for any plan makes nothing
scarce for good. Measured: with 3 % capacity was lost below overload, with 8 % half of the gain (see the decision)."""
REFRESHED_AFTER: Final = 16
"""Number of verdicts after which the threshold is learnt anew. Chosen: a sort of so few costs nothing then."""
HEADROOM_REQUESTS: Final = 4.0
"""Number of typical requests that must still fit beside one above the threshold. Measured: with one, up to a point less
is kept at overload (see the decision)."""


@dataclass(slots=True)
class CostThreshold:
    """What a promise may cost before it has to leave headroom, learnt from the latest verdicts.

    One event loop owns it.
    """

    _latest: deque[tuple[float, float, bool]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """When each verdict was reached, the work per value, and whether there was no room though it was below the
    threshold."""
    _noted: int = 0
    """Number of verdicts noted."""
    _learned: float = math.inf
    """Threshold as last learnt."""

    def settled(self, now_s: float, work_per_value: float, binding: Binding, *, late: bool) -> None:
        """Note the last word on a request that wanted a promise.

        A request that is in time all the same raises no threshold: promises are made by bounds, and nothing is scarce
        then.

        Args:
            binding: what it lacked, if anything.
            late: it is expected to be late without a promise.
        """
        self.note(now_s, work_per_value, found_no_room=late and binding not in {Binding.NONE, Binding.PRICE})

    def note(self, now_s: float, work_per_value: float, *, found_no_room: bool) -> None:
        """Note a verdict; `found_no_room` says that there was no room though the request was below the threshold."""
        self._latest.append((now_s, work_per_value, found_no_room))
        self._noted += 1
        if self._noted % REFRESHED_AFTER == 0:
            self._learned = self._learn()

    def threshold(self, now_s: float) -> float:
        """Return the work per value up to which a request need leave no headroom; infinite while all find room."""
        latest = self._latest
        while latest and latest[0][0] < now_s - WINDOW_S:
            latest.popleft()
        return self._learned if len(latest) >= FEWEST else math.inf

    def _learn(self) -> float:
        """Return the threshold above which as many requests lie as found no room, those tolerated apart."""
        without_room = sum(found_no_room for _, _, found_no_room in self._latest)
        above = int(without_room - TOLERATED * len(self._latest))
        if above <= 0:
            return math.inf
        return sorted(work for _, work, _ in self._latest)[-above - 1]


@dataclass(frozen=True, slots=True)
class ReservedHeadroom:
    """Headroom for typical arrivals that whoever is promised something has to leave."""

    requests: float
    """Number of typical requests that must still fit."""
    cost_threshold: float
    """Work per value up to which a request need leave none."""


def reserved_headroom(requests: float, threshold: CostThreshold | None, now_s: float) -> ReservedHeadroom | None:
    """Return the headroom that has to be left now; None if nobody has to leave any.

    Args:
        requests: number of typical requests for which everybody leaves headroom; 0: as the threshold says.
        threshold: None if there is to be none.
    """
    if requests:
        return ReservedHeadroom(requests, 0.0)
    cost_threshold = math.inf if threshold is None else threshold.threshold(now_s)
    return ReservedHeadroom(HEADROOM_REQUESTS, cost_threshold) if cost_threshold < math.inf else None
