"""What a cluster with nothing else to do could keep: contracts are resolved by it, and impossible ones found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.slo.admission.assessment import Impossible, Target
from services.slo.admission.requests import Arrival
from services.slo.admission.workers import Cluster, Group, WorkerState
from services.slo.contract import Contract

QUICKEST_FOR_S = 1.0
"""Seconds for which a worker is taken for the quickest of its pool."""
TYPICAL_PROMPT_TOKENS = 1024
"""Length of the prompt that workers are compared by to find the quickest: a middling one of chats and code."""


@dataclass(slots=True)
class IdleCluster:
    """The quickest worker of each pool as if it were idle. Owned by one event loop."""

    cluster: Cluster
    _quickest: dict[str, tuple[WorkerState, float]] = field(default_factory=dict)
    """Quickest worker of each pool, and since when it is taken for that."""

    def resolve(self, arrival: Arrival, groups: Sequence[Group], now_s: float) -> tuple[Contract, Impossible | None]:
        """Return the contract in seconds, and whether an idle worker could keep it."""
        prompt_tokens = arrival.facts.prompt_tokens
        first = self._quickest_of("prefill", [worker for group in groups for worker in group.first_choice], now_s)
        decoder = self._quickest_of("decode", [worker for group in groups for worker in group.decode], now_s)
        idle_s = first.model.prefill_s(prompt_tokens, first.facts.limits.max_step_tokens)
        contract = arrival.contract.resolved(idle_s)
        return contract, _impossible(contract, idle_s, decoder.model.decode_step_s(1, prompt_tokens))

    def _quickest_of(self, pool: str, workers: Sequence[WorkerState], now_s: float) -> WorkerState:
        kept = self._quickest.get(pool)
        if (
            kept is None
            or now_s - kept[1] > QUICKEST_FOR_S
            or self.cluster.workers.get(kept[0].worker_id) is not kept[0]
        ):
            quickest = min(
                workers,
                key=lambda worker: worker.model.prefill_s(TYPICAL_PROMPT_TOKENS, worker.facts.limits.max_step_tokens),
            )
            kept = self._quickest[pool] = (quickest, now_s)
        return kept[0]


def _impossible(contract: Contract, idle_prefill_s: float, idle_step_s: float) -> Impossible | None:
    ttft_s, tpot_s = contract.ttft_s(idle_prefill_s), contract.tightest_tpot_s
    if ttft_s is not None and ttft_s < idle_prefill_s:
        return Impossible(Target.TTFT, ttft_s, idle_prefill_s)
    if tpot_s is not None and tpot_s < idle_step_s:
        return Impossible(Target.TPOT, tpot_s, idle_step_s)
    return None
