"""The journal's account of requests: what another process can know of a request after its router is gone."""

from __future__ import annotations

from router.cluster.cluster_view import ClusterView
from router.requests.events import Refusal, RequestObserver
from router.requests.live_request import LiveRequest
from services.state.journal import RequestJournal


class JournalWriter(RequestObserver):
    """Writes each request's state, workers and progress into the journal."""

    def __init__(self, journal: RequestJournal, cluster: ClusterView) -> None:
        self._journal = journal
        self._cluster = cluster

    def on_refused(self, refusal: Refusal) -> None:
        """Free the id of a request if it was reserved."""
        if refusal.parsed is not None:
            self._journal.abandon(refusal.parsed.request_id)

    def on_entered(self, request: LiveRequest) -> None:
        """Write down the state that a request is in, and with which workers."""
        self._journal.update(
            request.request_id,
            state=request.state,
            attempt=request.attempt,
            prefill_worker_id=request.prefill_worker_id,
            prefill_engine_epoch=self._epoch(request.prefill_worker_id),
            decode_worker_id=request.decode_worker_id,
            decode_engine_epoch=self._epoch(request.decode_worker_id),
            tokens_delivered=len(request.generated),
        )

    def on_delivered(self, request: LiveRequest) -> None:
        """Write down how many tokens a client was given."""
        self._journal.delivered(request.request_id, len(request.generated))

    def _epoch(self, worker_id: str) -> str:
        view = self._cluster.workers.get(worker_id)
        return "" if view is None else view.facts.engine_epoch
