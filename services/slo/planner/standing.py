"""How the tenant of a candidate stands against its fair share of promises, and whom others leave room for."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """What a candidate's tenant has had of its fair share, as a round counts it."""

    priority: float = 1.0
    """Factor of the candidate's value beside those of other tenants, at least 1: larger the less its tenant has had."""
    leaves_room: bool = False
    """Whether the tenant has had most for its weight, so that it is promised only what leaves room for the one that is
    owed most."""


EVEN = Standing()
"""The standing of every candidate while nobody is owed anything."""


@dataclass(frozen=True, slots=True)
class OwedArrival:
    """The request that the tenant which is owed most is likely to send next, for which others leave room."""

    prompt_tokens: float
    """Tokens of its prompt."""
    kv_tokens: float
    """Context that it will reach, at the promised quantile of its length."""
    due_s: float
    """Seconds from its arrival until its first token is due."""
    share: float
    """Share of a worker, between 0 and 1, beyond which no room is left for it: however much work the tenant's requests
    are and however soon they are due, others have the rest."""
    requests: float = 1.0
    """Number of such requests that room is left for on each worker."""

    def __post_init__(self) -> None:
        if not (1 <= self.prompt_tokens <= self.kv_tokens < math.inf and 0 <= self.due_s < math.inf):
            raise ValueError(f"tokens and due time must be finite, and the context includes the prompt: {self}")
        if not (0 < self.share < 1 and 0 < self.requests < math.inf):
            raise ValueError(f"a share is between 0 and 1, and requests are positive: {self}")
