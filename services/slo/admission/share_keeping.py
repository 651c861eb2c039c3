"""What fair shares are told of requests that get their verdict: what each is like, and what its promise costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.slo.admission.assessment import Assessment, Held
from services.slo.admission.fair_shares import FairShares
from services.slo.admission.kv_forecasts import KvForecasts
from services.slo.admission.prefixes import PrefixIndex
from services.slo.admission.promise_cost import promise_cost_s
from services.slo.admission.requests import Arrival
from services.slo.admission.workers import Cluster


@dataclass(frozen=True, slots=True)
class ShareKeeper:
    """Keeps the accounts of fair shares up to date; does nothing while one tenant is alone. Owned by one event loop."""

    shares: FairShares
    cluster: Cluster
    memory: KvForecasts
    prefixes: PrefixIndex

    def learn(self, arrival: Arrival, answer: Assessment | Held, now_s: float) -> float:
        """Learn what a tenant's requests are like, and return the value of this one beside those of other tenants."""
        facts, contract = arrival.facts, answer.contract
        if not self.shares.shared(now_s):
            return contract.value
        new_tokens = facts.prompt_tokens - max(self._cached(arrival).values(), default=0)
        ttft_s = contract.ttft_s(0.0)
        kv_tokens = self.memory.of_new(facts)
        self.shares.learn(facts.tenant, max(1, new_tokens), kv_tokens, math.inf if ttft_s is None else ttft_s)
        return self.shares.comparable(facts.tenant, contract.value)

    def promised(self, arrival: Arrival, answer: Assessment, now_s: float) -> None:
        """Charge the tenant of a request for its promise."""
        if not self.shares.shared(now_s):
            return
        facts, placement = arrival.facts, answer.placement
        new_tokens = facts.prompt_tokens - self._cached(arrival).get(placement.prefill_worker_id, 0)
        cost_s = promise_cost_s(
            self.cluster,
            placement,
            new_tokens,
            facts.prompt_tokens,
            self.memory.expected_output(facts),
            self.memory.of_new(facts),
        )
        self.shares.promised(facts.tenant, cost_s)

    def _cached(self, arrival: Arrival) -> dict[str, int]:
        """Return the tokens of the prompt that workers have in their caches, by worker."""
        blocks = arrival.facts.blocks
        return dict(self.prefixes.holders(blocks, self.cluster.block_tokens))
