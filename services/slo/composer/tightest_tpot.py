"""How tight the streams are that an engine has to expect."""

from __future__ import annotations

import math
from collections import deque

REMEMBERED_S = 10.0


class TightestTpot:
    """The tightest TPOT lately promised: the next newcomer may be as tight, and find a step under way."""

    def __init__(self, remembered_s: float = REMEMBERED_S) -> None:
        self._remembered_s = remembered_s
        self._seen: deque[tuple[float, float]] = deque()
        """When, and which TPOT; a later one stands only if it is looser than all before it."""

    def note(self, tpot_s: float, now_s: float) -> None:
        """A stream of that TPOT was here; infinite and NaN are ignored."""
        if not tpot_s < math.inf:
            return
        while self._seen and self._seen[-1][1] >= tpot_s:
            self._seen.pop()
        self._seen.append((now_s, tpot_s))

    def tpot_s(self, now_s: float) -> float:
        """Infinite if none is remembered."""
        while self._seen and self._seen[0][0] < now_s - self._remembered_s:
            self._seen.popleft()
        return self._seen[0][1] if self._seen else math.inf
