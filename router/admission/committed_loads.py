"""What is promised on each decode worker, kept up request by request instead of counted again in every round."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.admission.tiers import tier_of
from router.cluster.memory import MemoryPromises
from router.requests.live_request import LiveRequest
from router.requests.request_index import Requests
from services.slo.planner import CommittedLoad, Tiers
from services.state.journal_entry import RequestState

_ANY = Tiers((1.0,))
"""While no round has asked for tiers."""


@dataclass(slots=True)
class WorkerCommitments:
    """Of one decode worker: those who decode there, or will."""

    tiers: Tiers
    planned: CommittedLoad
    """Those with room in the plan."""
    everyone: CommittedLoad
    revision: int = 0
    """Another one whenever something changed."""


@dataclass(slots=True)
class CommittedLoads:
    """Looks at what changed only. Owned by one event loop."""

    requests: Requests
    memory: MemoryPromises
    _workers: dict[str, WorkerCommitments] = field(default_factory=dict)

    def of(self, worker_id: str, tiers: Tiers | None = None) -> WorkerCommitments:
        """As things stand.

        Args:
            tiers: None: those asked for last; rates do not matter.
        """
        changes = self.requests.take_changes(worker_id)
        known = self._workers.get(worker_id)
        tiers = tiers or (_ANY if known is None else known.tiers)
        if known is None or known.tiers is not tiers or changes is None:
            revision = 0 if known is None else known.revision + 1
            known = WorkerCommitments(
                tiers, CommittedLoad(len(tiers.tpot_s)), CommittedLoad(len(tiers.tpot_s)), revision
            )
            self._workers[worker_id] = known
            changes = {request.request_id for request in self.requests.decoding(worker_id)}
        elif changes:
            known.revision += 1
        for request_id in changes:
            self._count(known, worker_id, request_id)
        return known

    def forget(self, worker_id: str) -> None:
        """The worker is gone."""
        self._workers.pop(worker_id, None)
        self.requests.forget(worker_id)

    def _count(self, known: WorkerCommitments, worker_id: str, request_id: str) -> None:
        request = self.requests.get(request_id)
        if request is None or request.decode_worker_id != worker_id:
            known.planned.drop(request_id)
            known.everyone.drop(request_id)
            return
        tier = -1 if known.tiers is _ANY else tier_of(promised_rate_s(request), known.tiers)
        holding = self.memory.holding(request, tier, decodes=not prefills_at(request, worker_id))
        known.everyone.put(request_id, holding)
        if request.planned:
            known.planned.put(request_id, holding)
        else:
            known.planned.drop(request_id)


def promised_rate_s(request: LiveRequest) -> float | None:
    """The TPOT that it is promised from here on; None without one."""
    return request.meter.tightest_tpot_s() if request.guaranteed else None


def prefills_at(request: LiveRequest, worker_id: str) -> bool:
    """Whether its prompt is still to be computed where it will decode."""
    match request.state:
        case RequestState.QUEUED:
            return request.placement.prefill_worker_id == worker_id
        case RequestState.PREFILLING:
            return request.prefill_worker_id == worker_id
        case _:
            return False
