"""How many tokens to draft for each request, from how drafts fared so far and what promises leave room for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from services.slo.performance import PerformanceModel, StepShape
from services.slo.planner import accepted_tokens
from services.slo.recent import RecentlyUsed

FIRST_GUESS, GUESS_WEIGHT = 0.5, 4.0
"""Probability that a draft token is accepted before any was tried, and how many tries it takes to outweigh it."""
MEMORY = 64.0
"""Draft tokens after which one counts a third."""
OWN_WEIGHT = 8.0
"""Draft tokens of its own that count as much to a request as those of its application, and to an application as those
of all others."""
SHOWN = 6.0
"""Draft tokens that an application must have tried before more than a probe is drafted on its account."""
PROBE_TOKENS, PROBE_LENGTH = 64, 2
"""A request that drafts nothing tries again after so many tokens, with so many drafts."""
LONGEST_PROBE_TOKENS = 1024
"""Each probe that brings nothing doubles the time to the next, up to this."""
RELIED_ON = 0.8
"""Part of an acceptance that was shown that a promise may depend on."""
AHEAD_SHARE = 0.25
"""Of the time that a stream is ahead, what the drafts of one step may cost it."""
APPLICATIONS = 256
"""Applications whose acceptance is remembered: those seen last."""


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

    @property
    def shown(self) -> bool:
        """Whether enough was tried to draft on the strength of it."""
        return self._tried >= SHOWN

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


@dataclass(frozen=True, slots=True)
class PromisedStream:
    """What drafts must not break."""

    tpot_s: float
    """Infinite without a promise."""
    alpha: float = 0.0
    """Probability that its own drafts are accepted, as far as one may count on it."""
    left_s: float = 0.0
    """Until its next token is due."""


def draft_room(
    shape: StepShape,
    streams: Iterable[PromisedStream],
    expected: PerformanceModel,
    bound: PerformanceModel,
    longest: int,
) -> int:
    """Tokens that each stream may draft and every promise still be kept with the acceptance that was shown.

    What a stream is ahead of its due times pays for drafts that nothing is known of. A promise that steps without
    drafts are not even expected to keep sets no limit.

    Args:
        shape: of the latest step.
        expected, bound: step times, and those that nearly all steps keep.
    """
    requests = shape.decode_requests
    plain = replace(
        shape,
        prefill_requests=0,
        prefill_tokens=0,
        prefill_attention_pairs=0.0,
        draft_steps=0,
        decode_tokens=requests,
    )
    plain_s, plain_bound_s = expected.step_s(plain), bound.step_s(plain)
    limits = [
        (stream.tpot_s, stream.alpha, AHEAD_SHARE * max(0.0, stream.left_s - max(stream.tpot_s, plain_bound_s)))
        for stream in streams
        if plain_s <= stream.tpot_s < math.inf
    ]
    for drafts in range(longest if limits else 0, 0, -1):
        step_s = bound.step_s(replace(plain, decode_tokens=requests * (1 + drafts), draft_steps=drafts))
        if all(step_s <= tpot_s * accepted_tokens(alpha, drafts) + ahead_s for tpot_s, alpha, ahead_s in limits):
            return drafts
    return 0 if limits else longest


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

    application: str
    length: int
    tokens_since_draft: int
    own: Acceptance = field(default_factory=Acceptance)
    probe_after_tokens: int = PROBE_TOKENS


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
        self._applications: RecentlyUsed[str, Acceptance] = RecentlyUsed(APPLICATIONS)
        self._room = longest
        self._pace: StepPace | None = None
        self._requests: dict[str, _Drafts] = {}
        self.drafted = self.accepted = 0
        """Tokens, so far."""

    def begin(self, request_id: str, application: str) -> None:
        """As many as pay in this application; a probe at once where that has yet to be shown."""
        acceptance = self._application(application)
        length = 0
        if acceptance.shown and self._pace is not None:
            length = draft_length(self._acceptance(acceptance), math.inf, self._pace, self._longest)
        self._requests[request_id] = _Drafts(application, length, 0 if acceptance.shown else PROBE_TOKENS)

    def end(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def limit(self, room: int) -> None:
        """Until told otherwise no request drafts more; see `draft_room`."""
        self._room = room

    def length(self, request_id: str) -> int:
        """Now and then longer than what pays, to learn whether that is still so. 0 for a request that did not begin."""
        drafts = self._requests.get(request_id)
        if drafts is None:
            return 0
        if self._always:
            return self._longest
        length = drafts.length
        if length == 0 and drafts.tokens_since_draft >= drafts.probe_after_tokens:
            length = PROBE_LENGTH
        return min(length, self._longest, self._room)

    def relied_on(self, request_id: str) -> float:
        """Probability that a draft of a request is accepted, as far as a promise may depend on it."""
        drafts = self._requests.get(request_id)
        if drafts is None or drafts.length == 0:
            return 0.0
        application = self._application(drafts.application)
        if not (application.shown or drafts.own.shown):
            return 0.0
        return RELIED_ON * drafts.own.probability(self._acceptance(application), OWN_WEIGHT)

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
        application = self._application(drafts.application)
        for acceptance in (self._all, application, drafts.own):
            acceptance.add(drafted, accepted)
        if drafts.length == 0:
            longer = min(LONGEST_PROBE_TOKENS, 2 * drafts.probe_after_tokens)
            drafts.probe_after_tokens = PROBE_TOKENS if accepted else longer
        drafts.tokens_since_draft = 0
        self._pace = pace
        alpha = drafts.own.probability(self._acceptance(application), OWN_WEIGHT)
        drafts.length = draft_length(alpha, tpot_s, pace, self._longest)
        if not (application.shown or drafts.own.shown):
            drafts.length = min(drafts.length, PROBE_LENGTH)

    def _application(self, application: str) -> Acceptance:
        return self._applications.get_or_make(application, Acceptance)

    def _acceptance(self, application: Acceptance) -> float:
        return application.probability(self._all.probability(FIRST_GUESS, GUESS_WEIGHT), OWN_WEIGHT)
