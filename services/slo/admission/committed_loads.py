"""What is promised on each decode worker, kept up request by request instead of counted again in every round."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.slo.admission.index import RequestIndex
from services.slo.admission.kv_forecasts import KvForecasts
from services.slo.admission.requests import TrackedRequest, prefills_at, promised_tpot_s
from services.slo.admission.tiers import tier_of
from services.slo.lengths import REFORECAST_TOKENS
from services.slo.planner import CommittedLoad, Tiers


@dataclass(slots=True)
class WorkerCommitments:
    """The requests of one decode worker: those who decode there, or will."""

    tiers: Tiers | None
    """The tiers that requests are counted in; None while no round has asked for any."""
    planned: CommittedLoad
    """Requests that the plan has room for."""
    everyone: CommittedLoad
    revision: int = 0
    """Number of times that something has changed."""
    looked_through_at_step: int = 0
    """Step of the worker at which all its requests were last looked at for outdated forecasts."""
    tier_by_id: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class CommittedLoads:
    """The commitments of every decode worker. Looks only at what has changed. Owned by one event loop."""

    requests: RequestIndex
    memory: KvForecasts
    _workers: dict[str, WorkerCommitments] = field(default_factory=dict)

    def of(self, worker_id: str, tiers: Tiers | None = None, step: int = 0) -> WorkerCommitments:
        """Return what is promised on a worker now.

        Args:
            tiers: the tiers that requests are counted in; None: those asked for last, when rates do not matter.
            step: number of steps that the worker has taken. A step brings each stream a token or a few: forecasts are
                looked through once in `REFORECAST_TOKENS` steps.
        """
        changes = self.requests.take_changes(worker_id)
        known = self._workers.get(worker_id)
        tiers = tiers or (None if known is None else known.tiers)
        if known is None or known.tiers is not tiers or changes is None:
            revision = 0 if known is None else known.revision + 1
            tier_count = 0 if tiers is None else len(tiers.tpot_s)
            known = WorkerCommitments(tiers, CommittedLoad(tier_count), CommittedLoad(tier_count), revision, step)
            self._workers[worker_id] = known
            changes = {request.facts.request_id: None for request in self.requests.decoding(worker_id)}
        else:
            if step >= known.looked_through_at_step + REFORECAST_TOKENS:
                known.looked_through_at_step = step
                changes = changes | self._outdated(known, worker_id)
            known.revision += bool(changes)
        for request_id in changes:
            self._count(known, worker_id, request_id)
        return known

    def forget(self, worker_id: str) -> None:
        """Drop what is kept for a worker that is gone."""
        self._workers.pop(worker_id, None)
        self.requests.forget(worker_id)

    def _outdated(self, known: WorkerCommitments, worker_id: str) -> dict[str, None]:
        """Return the requests that were counted with a forecast or a rate that no longer holds."""
        return {
            request.facts.request_id: None
            for request in self.requests.decoding(worker_id)
            if not self.memory.serves(request)
            or known.tier_by_id.get(request.facts.request_id) != self._tier(known, request)
        }

    def _tier(self, known: WorkerCommitments, request: TrackedRequest) -> int:
        return -1 if known.tiers is None else tier_of(promised_tpot_s(request), known.tiers)

    def _count(self, known: WorkerCommitments, worker_id: str, request_id: str) -> None:
        request = self.requests.get(request_id)
        if request is None or request.decode_worker_id != worker_id:
            known.planned.drop(request_id)
            known.everyone.drop(request_id)
            known.tier_by_id.pop(request_id, None)
            return
        tier = known.tier_by_id[request_id] = self._tier(known, request)
        commitment = self.memory.commitment(request, tier, decodes=not prefills_at(request, worker_id))
        known.everyone.put(request_id, commitment)
        if request.planned:
            known.planned.put(request_id, commitment)
        else:
            known.planned.drop(request_id)
