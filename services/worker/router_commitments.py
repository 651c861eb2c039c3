"""The work that each router has committed this worker to, so that the other routers can be told of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.rpc.errors import InvalidRequestError
from services.slo.admission import OtherDecodes, OtherPrompts, OtherWork
from services.slo.contract import MAX_TARGET_S, MIN_TARGET_S
from slos_serve.v1 import worker_pb2

EXPECTED = -1
"""Attempt of a commitment whose request has not been submitted yet."""
MOST_EXPECTED = 65_536
"""Requests of one session that are counted at most, far more than a router lets wait."""
MOST_PROMPTS = 16
"""Prompts that are reported one by one, the earliest due first. The others are summed, due with the first of them: a
report goes to every router, so that its size must not grow with the queue."""

MOST_RATES = 64
"""Rates that are reported one by one, for the same reason; contracts of a cluster have a handful."""


@dataclass(slots=True)
class _Commitment:
    attempt: int
    """Attempt at the request, or `EXPECTED` until it is submitted."""
    tokens: int
    """Tokens of context for which memory is promised."""
    tpot_s: float | None
    decodes: bool
    """Whether the request counts among the decodes of this worker, now or after its hand-over."""
    prompt_tokens: int = 0
    """Prompt tokens to be computed here; 0 if the request comes with its KV cache."""
    prompt_left: int = 0
    """Prompt tokens that are still to be computed here."""
    due_s: float = math.inf
    """Time at which the first token is due, on the worker's clock."""


class RouterCommitments:
    """The promised work of this worker, by router session.

    Best-effort requests commit the worker to nothing, because an engine serves them last. Instances belong to one event
    loop. Owners are the keys of router sessions.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_owner: dict[str, dict[str, _Commitment]] = {}

    def open(self, owner: str) -> None:
        """Begin to count the commitments of a new session."""
        self._by_owner[owner] = {}

    def close(self, owner: str) -> None:
        """Forget a session and everything that it committed the worker to."""
        self._by_owner.pop(owner, None)

    @property
    def shared(self) -> bool:
        """Whether more than one router uses this worker."""
        return len(self._by_owner) > 1

    def expect(self, owner: str, message: worker_pb2.Expect) -> None:
        """Commit to a request that will be handed over later; with no promised tokens, take that back.

        Raises:
            InvalidRequestError: a figure makes no sense, or `MOST_EXPECTED` requests are expected already.
        """
        if not message.promised_tokens:
            self.drop(owner, message.request_id, EXPECTED)
            return
        if message.promised_tokens < 0:
            raise InvalidRequestError(f"must not be negative; got {message.promised_tokens}", field="promised_tokens")
        tpot_s = _tpot_s(message)
        commitments = self._by_owner.get(owner, {})
        if len(commitments) >= MOST_EXPECTED and message.request_id not in commitments:
            raise InvalidRequestError(f"at most {MOST_EXPECTED} requests of a session", field="expect")
        self._put(owner, message.request_id, _Commitment(EXPECTED, message.promised_tokens, tpot_s, decodes=True))

    def submitted(self, owner: str, message: worker_pb2.Submit) -> bool:
        """Commit to a request that has arrived.

        Returns:
            Whether the other routers must be told at once. They know already of a request that was expected and comes
            with its KV cache, and a best-effort request does not concern them.
        """
        before = self._by_owner.get(owner, {}).get(message.request_id)
        if message.best_effort:
            self.drop(owner, message.request_id, EXPECTED)
            return False
        pulls = message.HasField("kv_source")
        due_s = self._clock() + message.deadline_in_s if message.HasField("deadline_in_s") else math.inf
        commitment = _Commitment(
            attempt=message.attempt,
            tokens=max(message.promised_tokens, len(message.token_ids)),
            tpot_s=_tpot_s(message),
            decodes=not message.export_kv,
            prompt_tokens=0 if pulls else len(message.token_ids),
            prompt_left=0 if pulls else len(message.token_ids),
            due_s=due_s,
        )
        self._put(owner, message.request_id, commitment)
        return not (pulls and before is not None and before.attempt == EXPECTED)

    def advance(self, owner: str, request_id: str, attempt: int, prefilled_tokens: int) -> None:
        """Note that an engine step worked on a request.

        Args:
            prefilled_tokens: prompt tokens computed so far; 0 once the whole prompt is computed.
        """
        commitment = self._by_owner.get(owner, {}).get(request_id)
        if commitment is not None and commitment.attempt == attempt and commitment.prompt_left:
            left = max(0, commitment.prompt_tokens - prefilled_tokens) if prefilled_tokens else 0
            commitment.prompt_left = left

    def drop(self, owner: str, request_id: str, attempt: int) -> None:
        """End the commitment to an attempt at a request; one to another attempt stays."""
        commitments = self._by_owner.get(owner, {})
        commitment = commitments.get(request_id)
        if commitment is not None and commitment.attempt == attempt:
            del commitments[request_id]

    def others(self, owner: str) -> OtherWork:
        """Sum up what all sessions but this one have committed the worker to."""
        requests: defaultdict[float | None, int] = defaultdict(int)
        tokens: defaultdict[float | None, int] = defaultdict(int)
        prompts: list[tuple[float, int]] = []
        for other, commitments in self._by_owner.items():
            if other == owner:
                continue
            for commitment in commitments.values():
                if commitment.decodes:
                    requests[commitment.tpot_s] += 1
                    tokens[commitment.tpot_s] += commitment.tokens
                if commitment.prompt_left:
                    prompts.append((commitment.due_s, commitment.prompt_left))
        prompts.sort()
        now_s = self._clock()
        reported = [OtherPrompts(due_s - now_s, left) for due_s, left in prompts[:MOST_PROMPTS]]
        if rest := prompts[MOST_PROMPTS:]:
            reported.append(OtherPrompts(rest[0][0] - now_s, sum(left for _, left in rest)))
        return OtherWork(_decodes(requests, tokens), tuple(reported))

    def _put(self, owner: str, request_id: str, commitment: _Commitment) -> None:
        # Commands of a session that was closed may still be on their way; they commit the worker to nothing.
        if owner in self._by_owner:
            self._by_owner[owner][request_id] = commitment


def _decodes(requests: Mapping[float | None, int], tokens: Mapping[float | None, int]) -> tuple[OtherDecodes, ...]:
    """Return what decodes, by rate; beyond `MOST_RATES` rates, neighbours share the tighter one's."""
    rates = sorted(rate for rate in requests if rate is not None)
    stride = max(1, -(-len(rates) // MOST_RATES))
    shared = [rates[first : first + stride] for first in range(0, len(rates), stride)]
    groups: list[tuple[float | None, Sequence[float | None]]] = [(group[0], group) for group in shared]
    if None in requests:
        groups.append((None, (None,)))
    return tuple(
        OtherDecodes(tpot_s, sum(requests[rate] for rate in group), sum(tokens[rate] for rate in group))
        for tpot_s, group in groups
    )


def _tpot_s(message: worker_pb2.Expect | worker_pb2.Submit) -> float | None:
    if not message.HasField("tpot_s"):
        return None
    # The bounds of every target of a contract: one session's rate has its place in the plans of all routers.
    if not MIN_TARGET_S <= message.tpot_s <= MAX_TARGET_S:  # NaN is not within any bounds
        raise InvalidRequestError(
            f"must be at least {MIN_TARGET_S:g} s and at most {MAX_TARGET_S:g} s; got {message.tpot_s}", field="tpot_s"
        )
    return message.tpot_s
