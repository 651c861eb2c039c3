"""The number of tokens to draft for each request, from how its drafts fared and what promises leave room for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from services.slo.performance import PerformanceModel, StepShape
from services.slo.planner import accepted_tokens
from services.slo.recent import RecentlyUsed

FIRST_GUESS, GUESS_WEIGHT = 0.5, 4.0
"""Probability that a draft token is accepted before any was tried, and number of tries that outweigh it (chosen)."""
MEMORY = 64.0
"""Number of draft tokens after which an earlier one counts 1/e (chosen)."""
OWN_WEIGHT = 8.0
"""Number of its own draft tokens that count as much to a request as those of its application, and to an application as
those of all others (chosen)."""
SHOWN = 6.0
"""Number of draft tokens that an application must have tried before more than a probe is drafted on its account."""
PROBE_TOKENS, PROBE_LENGTH = 64, 2
"""Number of tokens after which a request that drafts nothing tries again, and number of drafts in such a probe."""
LONGEST_PROBE_TOKENS = 1024
"""Largest number of tokens between two probes; each that brings nothing doubles the distance to the next."""
RELIED_ON = 0.8
"""Share of an acceptance that was shown on which a promise may depend."""
AHEAD_SHARE = 0.25
"""Share of the time that a stream is ahead which the drafts of one step may cost it."""
APPLICATIONS = 256
"""Number of applications whose acceptance is remembered: those seen last."""


class Acceptance:
    """The probability that a draft token is accepted if those before it were. The latest drafts count most."""

    __slots__ = ("_accepted", "_tried")

    def __init__(self) -> None:
        self._accepted = self._tried = 0.0

    def add(self, drafted: int, accepted: int) -> None:
        """Record that a step verified `drafted` tokens and took the first `accepted` of them."""
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
        """Return the probability as if `weight` more tokens had been tried, and the share `prior` of them accepted."""
        return (self._accepted + weight * prior) / (self._tried + weight)


@dataclass(frozen=True, slots=True)
class StepPace:
    """The cost and the yield of steps at present."""

    step_s: float
    """Seconds that a step is expected to take without drafts."""
    token_s: float
    """Seconds that one draft adds to that, as if nobody else had one."""
    tokens: float
    """Number of tokens that all streams together get from a step."""

    @classmethod
    def of(cls, shape: StepShape, tokens: int, model: PerformanceModel) -> StepPace:
        """Return the pace of the latest step.

        Args:
            shape: the step.
            tokens: number of tokens that it brought.
        """
        plain = replace(shape, decode_tokens=shape.decode_requests, draft_steps=0)
        step_s = model.step_s(plain)
        longer = replace(plain, decode_tokens=plain.decode_tokens + 1, draft_steps=1)
        return cls(step_s, model.step_s(longer) - step_s, max(1.0, float(tokens)))


@dataclass(frozen=True, slots=True)
class PromisedStream:
    """One stream whose promise drafts must not break."""

    tpot_s: float
    """Seconds per token that were promised; infinite without a promise."""
    alpha: float = 0.0
    """Probability that its own drafts are accepted, as far as one may count on it."""
    left_s: float = 0.0
    """Seconds until its next token is due."""


def draft_room(
    shape: StepShape,
    streams: Iterable[PromisedStream],
    expected: PerformanceModel,
    bound: PerformanceModel,
    longest: int,
) -> int:
    """Return how many tokens each stream may draft so that every promise is kept with the acceptance that was shown.

    What a stream is ahead of its due times pays for drafts that nothing is known of. A promise that steps without
    drafts are not even expected to keep sets no limit.

    Args:
        shape: the latest step.
        expected, bound: step times, and those that nearly all steps keep.
        longest: largest number of tokens that may be drafted.
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
    """Return how many tokens to draft for a request.

    A stream whose tokens are due more often than its engine steps gets the fewest drafts that keep its rate. Any stream
    gets drafts for as long as the next one brings it more tokens than the time it takes costs all streams together.

    Args:
        alpha: probability that a draft token is accepted.
        tpot_s: seconds per token that the stream needs; infinite without a promise.
        longest: largest number of tokens that may be drafted.
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
    """The drafts of one request."""

    application: str
    length: int
    tokens_since_draft: int
    own: Acceptance = field(default_factory=Acceptance)
    probe_after_tokens: int = PROBE_TOKENS


class DraftBook:
    """The book of how many tokens each request drafts in its next step."""

    def __init__(self, longest: int, *, always: bool) -> None:
        """Begin with no requests.

        Args:
            longest: largest number of tokens drafted for a request in a step.
            always: whether to draft as many whether it pays or not.
        """
        self._longest = longest
        self._always = always
        self._all = Acceptance()
        self._applications: RecentlyUsed[str, Acceptance] = RecentlyUsed(APPLICATIONS)
        self._room = longest
        self._pace: StepPace | None = None
        self._requests: dict[str, _Drafts] = {}
        self.drafted = self.accepted = 0
        """Number of tokens that were drafted, and that were accepted, so far."""

    def begin(self, request_id: str, application: str) -> None:
        """Have a request draft what pays in its application, or probe at once where that has yet to be shown."""
        acceptance = self._application(application)
        length = 0
        if acceptance.shown and self._pace is not None:
            length = draft_length(self._acceptance(acceptance), math.inf, self._pace, self._longest)
        self._requests[request_id] = _Drafts(application, length, 0 if acceptance.shown else PROBE_TOKENS)

    def end(self, request_id: str) -> None:
        """Forget a request. Unknown ones are ignored."""
        self._requests.pop(request_id, None)

    def limit(self, room: int) -> None:
        """Let no request draft more than this, until told otherwise; see `draft_room`."""
        self._room = room

    def length(self, request_id: str) -> int:
        """Return how many tokens a request drafts: now and then more than pay, to learn whether that is still so.

        It is 0 for a request that did not begin.
        """
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
        """Return the probability that a draft of a request is accepted, as far as a promise may depend on it."""
        drafts = self._requests.get(request_id)
        if drafts is None or drafts.length == 0:
            return 0.0
        application = self._application(drafts.application)
        if not (application.shown or drafts.own.shown):
            return 0.0
        return RELIED_ON * drafts.own.probability(self._acceptance(application), OWN_WEIGHT)

    def add(self, request_id: str, tokens: int, drafted: int, tpot_s: float, pace: StepPace) -> None:
        """Record that a step brought a request `tokens` tokens, with `drafted` drafts verified."""
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
