"""The policy of a prefill worker."""

from __future__ import annotations

import logging

from prefill_worker.lease_owners import LeaseOwners
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import EngineFacts, EngineRequest
from services.state.registry import WorkerRole
from services.worker.policy import Refusal, RolePolicy

_log = logging.getLogger(__name__)


class PrefillPolicy(RolePolicy):
    """A prefill worker takes prompts, to export their KV caches or to run to the end, and pulls no KV cache."""

    role = WorkerRole.PREFILL

    def __init__(self) -> None:
        self.leases = LeaseOwners()
        self.exports = 0
        """Number of KV caches that were leased out."""

    def admit(self, request: EngineRequest, facts: EngineFacts) -> EngineRequest | Refusal:
        if request.kv_source is not None:
            return Refusal("a prefill worker pulls no KV cache", invalid=True)
        return request

    def hold(self, owner: str, kv: KvHandle) -> None:
        self.exports += 1
        self.leases.open(owner, kv)

    def lease_closed(self, lease_id: str, outcome: LeaseOutcome) -> str | None:
        if outcome is LeaseOutcome.EXPIRED:
            _log.warning("lease %s expired: its KV cache was never pulled", lease_id)
        return self.leases.close(lease_id, outcome)

    def leases_of(self, owner: str) -> tuple[str, ...]:
        return self.leases.of(owner)

    def given_up(self, lease_id: str) -> None:
        self.leases.give_up(lease_id)

    def leased_blocks(self, owners: frozenset[str]) -> int:
        return self.leases.wanted_blocks(owners)

    @property
    def open_leases(self) -> int:
        return len(self.leases)

    def summary(self) -> str:
        ends = ", ".join(f"{count} {outcome.value}" for outcome, count in self.leases.closed.items())
        return f"KV caches exported: {self.exports} ({ends})"
