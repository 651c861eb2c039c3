"""A request that wants a promise, in absolute times, as it is turned into a candidate of the planner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.slo.admission.requests import Arrival
from services.slo.admission.tiers import tier_of
from services.slo.contract import Contract
from services.slo.planner import EVEN, Candidate, Standing, Tiers


@dataclass(frozen=True, slots=True)
class PromiseWanted:
    """What would have to be kept for a request. Its contract is resolved: slowdowns are seconds."""

    request_id: str
    prompt_tokens: int
    kv_tokens: int
    """Context tokens that it is promised memory for."""
    due_s: float = math.inf
    """When its first token is due, on the caller's clock; infinite without such a target."""
    tpot_s: float | None = None
    value: float = 1.0
    cached: tuple[tuple[str, int], ...] = ()
    """Workers that have the beginning of its prompt in their cache, each with the number of tokens it has."""
    standing: Standing = EVEN
    """What its tenant has had of its fair share."""

    def candidate(self, tiers: Tiers, now_s: float) -> Candidate:
        """Return the request as the planner counts it, with times from now on."""
        return Candidate(
            candidate_id=self.request_id,
            prompt_tokens=self.prompt_tokens,
            kv_tokens=self.kv_tokens,
            deadline_s=self.due_s - now_s,
            tier=tier_of(self.tpot_s, tiers),
            value=self.value,
            cached=self.cached,
            standing=self.standing,
        )

    @property
    def cost(self) -> float:
        """Prompt tokens for each unit of value: what the typical request is found by."""
        return self.prompt_tokens / self.value


def first_token_due_s(arrival: Arrival, contract: Contract, output_tokens: int) -> float:
    """Return when the first token is due, on the caller's clock; infinite without a target.

    What comes after it must still be possible before the task is due.

    Args:
        contract: its contract, resolved.
        output_tokens: tokens of output that it is promised memory for.
    """
    ttft_s = contract.ttft_s(0.0)
    due_s = math.inf if ttft_s is None else arrival.arrival_s + ttft_s
    if arrival.task_due_s is not None:
        due_s = min(due_s, arrival.task_due_s - output_tokens * (contract.tightest_tpot_s or 0.0))
    return due_s
