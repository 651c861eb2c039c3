"""When the tokens of one request are due."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

LONGEST_GAP_TPOTS = 2.0
"""Times its TPOT: a stream that ran ahead had better not pause longer, although its next token is not due yet."""


@dataclass(slots=True)
class TokenDeadlines:
    """Due times of one request on one engine, all on the engine's clock.

    The first token of a prompt is due when the contract says; token k after it k * tpot_s after it came. A request that
    comes with output goes on where it was: its next token is due when the router says, each further one tpot_s later.
    """

    due_s: float = math.inf
    """The next token is late after this; infinite without a promise."""
    tpot_s: float = math.inf
    wanted_s: float = math.inf
    """The next token should come by then for an even stream; see `LONGEST_GAP_TPOTS`."""
    best_effort: bool = False
    """Nobody promised to keep it: once a token is late, there is nothing left to keep."""
    counts_from_due: bool = False
    """The next token is one of a stream whose due times are known, so that coming early does not move the others."""

    @classmethod
    def begin(
        cls,
        now_s: float,
        deadline_in_s: float | None,
        tpot_s: float | None,
        generated_tokens: int,
        *,
        best_effort: bool = False,
    ) -> Self:
        """What an `EngineRequest` that arrived at `now_s` was promised.

        Raises:
            ValueError: a figure is not finite, or tpot_s not positive.
        """
        if deadline_in_s is not None and not math.isfinite(deadline_in_s):
            raise ValueError(f"deadline_in_s must be finite; got {deadline_in_s}")
        if tpot_s is not None and not (math.isfinite(tpot_s) and tpot_s > 0):
            raise ValueError(f"tpot_s must be finite and positive; got {tpot_s}")
        return cls(
            due_s=math.inf if deadline_in_s is None else now_s + deadline_in_s,
            tpot_s=math.inf if tpot_s is None else tpot_s,
            best_effort=best_effort,
            counts_from_due=generated_tokens > 0 and deadline_in_s is not None,
        )

    def tokens(self, count: int, now_s: float) -> None:
        """`count` tokens came at `now_s`."""
        if count < 1:
            return
        if self.best_effort and now_s > self.due_s:
            self.due_s = self.tpot_s = self.wanted_s = math.inf
            return
        if self.counts_from_due:
            self.due_s += count * self.tpot_s
        else:
            self.due_s = now_s + count * self.tpot_s
            self.counts_from_due = self.tpot_s < math.inf
        self.wanted_s = now_s + LONGEST_GAP_TPOTS * self.tpot_s
