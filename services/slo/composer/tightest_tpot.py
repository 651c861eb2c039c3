"""The tightest TPOT that an engine has to expect of a newcomer."""

from __future__ import annotations

import math
from collections import deque

REMEMBERED_S = 10.0
"""Seconds for which a TPOT is remembered after its stream was last seen (chosen, not measured)."""


class TightestTpot:
    """Remembers the tightest TPOT that was promised lately, because a newcomer as tight may find a step under way."""

    def __init__(self, remembered_s: float = REMEMBERED_S) -> None:
        self._remembered_s = remembered_s
        self._seen: deque[tuple[float, float]] = deque()
        """Times and TPOTs in order of time; a TPOT drops those before it that are not tighter, which it outlives."""

    def note(self, tpot_s: float, now_s: float) -> None:
        """Record that a stream of that TPOT was here at `now_s`; infinite and NaN are ignored."""
        if not tpot_s < math.inf:
            return
        while self._seen and self._seen[-1][1] >= tpot_s:
            self._seen.pop()
        self._seen.append((now_s, tpot_s))

    def tpot_s(self, now_s: float) -> float:
        """Return the tightest TPOT that is remembered at `now_s`; infinite if there is none."""
        while self._seen and self._seen[0][0] < now_s - self._remembered_s:
            self._seen.popleft()
        return self._seen[0][1] if self._seen else math.inf
