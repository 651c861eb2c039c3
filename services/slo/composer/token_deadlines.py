"""Due times of the tokens of one request on one engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from services.slo.due_times import next_due_s, wanted_s


@dataclass(slots=True)
class TokenDeadlines:
    """When one request's next token is due, on the engine's clock.

    A request that comes without output begins a stage with its first token. One that comes with output goes on where it
    was: the router says when its next token is due, and each further one is due a TPOT later
    (docs/explanation/planning-mathematics.md, section 1).
    """

    due_s: float = math.inf
    """Time after which the next token is late; infinite without a promise."""
    tpot_s: float = math.inf
    """TPOT target; infinite without a promise."""
    wanted_s: float = math.inf
    """Time by which an even stream has its next token, though that may not be due yet: see `due_times.wanted_s`."""
    best_effort: bool = False
    """Whether nobody promised to keep the targets: once one token is late, there is nothing left to keep."""
    counts_from_due: bool = False
    """Whether the next token's due time is known from the tokens before it, so that its coming early moves no other."""

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
        """Return the deadlines of an `EngineRequest` that arrived at `now_s`.

        Args:
            deadline_in_s: seconds from `now_s` until its next token is due; None without such a promise.
            tpot_s: TPOT target; None without one.
            generated_tokens: output tokens that come with its prompt.

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

    def note_tokens(self, count: int, now_s: float) -> None:
        """Record that `count` tokens came together at `now_s`, and move on to the next one's due time."""
        if count < 1:
            return
        if self.best_effort and now_s > self.due_s:
            self.due_s = self.tpot_s = self.wanted_s = math.inf
            return
        if self.counts_from_due:
            self.due_s = next_due_s(self.due_s, count, self.tpot_s)
        else:
            self.due_s = next_due_s(now_s, count, self.tpot_s)
            self.counts_from_due = self.tpot_s < math.inf
        self.wanted_s = wanted_s(now_s, self.tpot_s)
