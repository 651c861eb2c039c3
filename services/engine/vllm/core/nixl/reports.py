"""What KV workers tell the scheduler after a step: transfers, failures, and how leases ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata

from services.engine.kv.handle import KvPull, LeaseOutcome


@dataclass
class KvReport(KVConnectorWorkerMetadata):
    """One worker's report; those of a tensor parallel group are merged."""

    pulls: dict[str, KvPull] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, LeaseOutcome] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pulls or self.failures or self.outcomes)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KvReport:
        if not isinstance(other, KvReport):
            raise TypeError(f"cannot merge {type(other).__name__} into a KvReport")
        pulls = dict(self.pulls)
        for request_id, pull in other.pulls.items():
            mine = pulls.get(request_id)
            pulls[request_id] = (
                pull if mine is None else KvPull(mine.kv_bytes + pull.kv_bytes, max(mine.transfer_s, pull.transfer_s))
            )
        return KvReport(pulls, other.failures | self.failures, other.outcomes | self.outcomes)
