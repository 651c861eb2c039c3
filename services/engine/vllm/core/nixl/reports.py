"""The report of a KV worker to the scheduler after a step: transfers, failures, and how leases ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata

from services.engine.kv.handle import KvPull, LeaseOutcome


@dataclass
class KvReport(KVConnectorWorkerMetadata):
    """The report of one worker; those of a tensor parallel group are merged."""

    pulls: dict[str, KvPull] = field(default_factory=dict)
    """Transfers that brought a KV cache, by request id."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reasons why a KV cache has to be computed here, by request id."""
    outcomes: dict[str, LeaseOutcome] = field(default_factory=dict)
    """Ends of leases on this engine's own blocks, by request id."""

    def __bool__(self) -> bool:
        return bool(self.pulls or self.failures or self.outcomes)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KvReport:
        """Return both reports in one: ranks move their parts of a KV cache at the same time."""
        if not isinstance(other, KvReport):
            raise TypeError(f"cannot merge {type(other).__name__} into a KvReport")
        pulls = dict(self.pulls)
        for request_id, pull in other.pulls.items():
            mine = pulls.get(request_id)
            pulls[request_id] = (
                pull if mine is None else KvPull(mine.kv_bytes + pull.kv_bytes, max(mine.transfer_s, pull.transfer_s))
            )
        return KvReport(pulls, other.failures | self.failures, other.outcomes | self.outcomes)
