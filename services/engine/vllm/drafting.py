"""How many tokens to draft for each request, from how its drafts fared so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from services.slo.performance import PerformanceModel, StepShape
from services.slo.planner.step_table import accepted_tokens

FIRST_GUESS, GUESS_WEIGHT = 0.5, 4.0
"""Probability that a draft token is accepted before any was tried, and how many tries it takes to outweigh it."""
MEMORY = 64.0
"""Draft tokens after which one counts a third."""
OWN_WEIGHT = 8.0
"""Draft tokens of its own that count as much to a request as those of all others."""
PROBE_TOKENS, PROBE_LENGTH = 64, 2
"""A request that drafts nothing tries again after so many tokens, with so many drafts."""


class Acceptance:
    """Probability that a draft token is accepted, given that those before it were. The latest drafts count most."""

    __slots__ = ("_accepted", "_tried")

    def __init__(self) -> None:
        self._accepted = self._tried = 0.0

    def add(self, drafted: int, accepted: int) -> None:
        """A step verified `drafted` tokens, and took the first `accepted`."""
        # Tokens after the first rejected one say nothing.
        tried = accepted + (accepted < drafted)
        keep = math.exp(-tried / MEMORY)
        self._accepted = keep * self._accepted + accepted
        self._tried = keep * self._tried + tried

    def probability(self, prior: float, weight: float) -> float:
        """As if `weight` more tokens had been tried, with the share `prior` of them accepted."""
        return (self._accepted + weight * prior) / (self._tried + weight)


@dataclass(frozen=True, slots=True)
class StepPace:
    """What steps cost and bring at present."""

    step_s: float
    """Expected duration without drafts."""
    token_s: float
    """What a draft adds to that, as if nobody else had one."""
    tokens: float
    """That all streams together get from a step."""

    @classmethod
    def of(cls, shape: StepShape, tokens: int, model: PerformanceModel) -> StepPace:
        """
        Args:
            shape: of the latest step.
            tokens: it brought.
        """
        plain = replace(shape, decode_tokens=shape.decode_requests, draft_steps=0)
        step_s = model.step_s(plain)
        longer = replace(plain, decode_tokens=plain.decode_tokens + 1, draft_steps=1)
        return cls(step_s, model.step_s(longer) - step_s, max(1.0, float(tokens)))


def draft_length(alpha: float, tpot_s: float, pace: StepPace, longest: int) -> int:
    """Tokens to draft for a request.

    A stream whose tokens are due more often than its engine steps gets the fewest drafts that keep its rate. Any stream
    gets drafts for as long as the next one brings it more tokens than the time it takes costs all streams together.

    Args:
        alpha: probability that a draft token is accepted.
        tpot_s: what the stream needs; infinite without a promise.
        longest: most tokens that may be drafted.
    """
    needed = 0
    if pace.step_s > tpot_s:
        lengths = range(longest + 1)
        needed = next((drafts for drafts in lengths if tpot_s * accepted_tokens(alpha, drafts) >= pace.step_s), 0)
    paying = 0
    while paying < longest and alpha ** (paying + 1) * pace.step_s > pace.tokens * pace.token_s:
        paying += 1
    return max(needed, paying)


@dataclass(slots=True)
class _Drafts:
    """Of one request."""

    length: int
    own: Acceptance = field(default_factory=Acceptance)
    tokens_since_draft: int = 0


class DraftBook:
    """What each request drafts in its next step."""

    def __init__(self, longest: int, *, always: bool) -> None:
        """
        Args:
            longest: most tokens drafted for a request in a step.
            always: draft as many whether it pays or not.
        """
        self._longest = longest
        self._always = always
        self._all = Acceptance()
        self._pace: StepPace | None = None
        self._requests: dict[str, _Drafts] = {}
        self.drafted = self.accepted = 0
        """Tokens, so far."""

    def begin(self, request_id: str) -> None:
        """As many as have paid for others; if none did, a few, to see whether this one is different."""
        length = self._longest
        if self._pace is not None:
            length = draft_length(self._acceptance(), math.inf, self._pace, self._longest)
        self._requests[request_id] = _Drafts(length, tokens_since_draft=PROBE_TOKENS)

    def end(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def length(self, request_id: str) -> int:
        """Now and then longer than what pays, to learn whether that is still so. 0 for a request that did not begin."""
        drafts = self._requests.get(request_id)
        if drafts is None:
            return 0
        if self._always:
            return self._longest
        if drafts.length == 0 and drafts.tokens_since_draft >= PROBE_TOKENS:
            return min(PROBE_LENGTH, self._longest)
        return drafts.length

    def add(self, request_id: str, tokens: int, drafted: int, tpot_s: float, pace: StepPace) -> None:
        """A step brought a request `tokens` tokens, with `drafted` drafts verified."""
        drafts = self._requests.get(request_id)
        if drafts is None:
            return
        if not drafted:
            drafts.tokens_since_draft += tokens
            return
        accepted = max(0, tokens - 1)
        self.drafted += drafted
        self.accepted += accepted
        self._all.add(drafted, accepted)
        drafts.own.add(drafted, accepted)
        drafts.tokens_since_draft = 0
        self._pace = pace
        alpha = drafts.own.probability(self._acceptance(), OWN_WEIGHT)
        drafts.length = draft_length(alpha, tpot_s, pace, self._longest)

    def _acceptance(self) -> float:
        return self._all.probability(FIRST_GUESS, GUESS_WEIGHT)
