"""What each router has promised of this worker, so that the others can be told."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from services.wire.others import OtherDecodes, OtherPrompts, OtherWork
from slos_serve.v1 import worker_pb2

EXPECTED = -1
MOST_PROMPTS = 16
"""Prompts told one by one, the earliest first; the rest go together, due with the first of them."""


@dataclass(slots=True)
class _Claim:
    attempt: int
    """`EXPECTED` until it is here."""
    tokens: int
    """Context promised."""
    tpot_s: float | None
    decodes: bool
    """It is counted among the decodes: now, or once it is handed over."""
    prompt_tokens: int = 0
    """To be computed here; 0 if it comes with its KV cache."""
    prompt_left: int = 0
    """Of those."""
    due_s: float = math.inf


class Claims:
    """Promised work by session. Best effort claims nothing: engines put it last. Owned by one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_owner: dict[str, dict[str, _Claim]] = {}

    def open(self, owner: str) -> None:
        self._by_owner[owner] = {}

    def close(self, owner: str) -> None:
        self._by_owner.pop(owner, None)

    @property
    def shared(self) -> bool:
        """More than one router works here."""
        return len(self._by_owner) > 1

    def expect(self, owner: str, message: worker_pb2.Expect) -> None:
        """A request will be handed over to this worker, or will not be any more."""
        if not message.promised_tokens:
            self.drop(owner, message.request_id, EXPECTED)
            return
        tpot_s = message.tpot_s if message.HasField("tpot_s") else None
        self._put(owner, message.request_id, _Claim(EXPECTED, message.promised_tokens, tpot_s, decodes=True))

    def submitted(self, owner: str, message: worker_pb2.Submit) -> bool:
        """A request is here.

        Returns:
            Whether the others must hear of it at once: of what is handed over as expected they have, and of best effort
            they need not.
        """
        before = self._by_owner.get(owner, {}).get(message.request_id)
        if message.best_effort:
            self.drop(owner, message.request_id, EXPECTED)
            return False
        pulls = message.HasField("kv_source")
        due_s = self._clock() + message.deadline_in_s if message.HasField("deadline_in_s") else math.inf
        claim = _Claim(
            attempt=message.attempt,
            tokens=max(message.promised_tokens, len(message.token_ids)),
            tpot_s=message.tpot_s if message.HasField("tpot_s") else None,
            decodes=not message.export_kv,
            prompt_tokens=0 if pulls else len(message.token_ids),
            prompt_left=0 if pulls else len(message.token_ids),
            due_s=due_s,
        )
        self._put(owner, message.request_id, claim)
        return not (pulls and before is not None and before.attempt == EXPECTED)

    def went_on(self, owner: str, request_id: str, attempt: int, prefilled_tokens: int) -> None:
        """A step worked on it: so many tokens of its prompt are computed, or with 0 all of them."""
        claim = self._by_owner.get(owner, {}).get(request_id)
        if claim is not None and claim.attempt == attempt and claim.prompt_left:
            claim.prompt_left = max(0, claim.prompt_tokens - prefilled_tokens) if prefilled_tokens else 0

    def drop(self, owner: str, request_id: str, attempt: int) -> None:
        """It ended, or was let go of; nothing happens if it claims nothing, or another attempt at it does."""
        claims = self._by_owner.get(owner, {})
        claim = claims.get(request_id)
        if claim is not None and claim.attempt == attempt:
            del claims[request_id]

    def others(self, owner: str) -> OtherWork:
        """What everybody but this one has been promised."""
        requests: defaultdict[float | None, int] = defaultdict(int)
        tokens: defaultdict[float | None, int] = defaultdict(int)
        prompts: list[tuple[float, int]] = []
        for other, claims in self._by_owner.items():
            if other == owner:
                continue
            for claim in claims.values():
                if claim.decodes:
                    requests[claim.tpot_s] += 1
                    tokens[claim.tpot_s] += claim.tokens
                if claim.prompt_left:
                    prompts.append((claim.due_s, claim.prompt_left))
        prompts.sort()
        now_s = self._clock()
        told = [OtherPrompts(due_s - now_s, left) for due_s, left in prompts[:MOST_PROMPTS]]
        if rest := prompts[MOST_PROMPTS:]:
            told.append(OtherPrompts(rest[0][0] - now_s, sum(left for _, left in rest)))
        decodes = [OtherDecodes(tpot_s, count, tokens[tpot_s]) for tpot_s, count in requests.items()]
        return OtherWork(tuple(decodes), tuple(told))

    def _put(self, owner: str, request_id: str, claim: _Claim) -> None:
        # A session that is over claims nothing, whatever it still had on its way.
        if owner in self._by_owner:
            self._by_owner[owner][request_id] = claim
