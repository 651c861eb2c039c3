"""Reservations of decode capacity: decode workers are told of planned requests that will come to them later.

A decode worker otherwise hears of a request only at its hand-over, and until then another router would take its room
for free.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.cluster import commands
from router.cluster.cluster_view import ClusterView
from router.cluster.links import WorkerLink
from router.requests.live_request import LiveRequest
from services.slo.admission import AdmissionCore
from services.state.journal_entry import RequestState


class Reservations:
    """Tells decode workers which requests to expect. Only workers that serve other routers as well are told."""

    def __init__(self, cluster: ClusterView, core: AdmissionCore, links: Mapping[str, WorkerLink]) -> None:
        self._cluster = cluster
        self._core = core
        self._links = links
        self._told: dict[str, str] = {}
        """The worker that expects a request, by request id."""

    def follow(self, request: LiveRequest) -> None:
        """Tell the workers concerned that the state or the placement of a request changed."""
        told = self._told.get(request.request_id, "")
        wanted = self._wanted(request)
        if wanted == told:
            return
        self._told.pop(request.request_id, None)
        # Where the request is submitted to the worker that expects it, the Submit replaces the reservation.
        if told and told != request.worker_id and (link := self._links.get(told)) is not None:
            link.send(commands.expect(request, 0))
        if wanted:
            self._told[request.request_id] = wanted
            self._links[wanted].send(commands.expect(request, self._core.promised_kv_tokens(request)))

    def _wanted(self, request: LiveRequest) -> str:
        """Return the worker that should expect the request; empty if none should."""
        worker_id = request.decode_worker_id
        waits = request.state in (RequestState.QUEUED, RequestState.PREFILLING)
        if not (waits and request.planned) or request.placement.local or worker_id not in self._links:
            return ""
        view = self._cluster.workers.get(worker_id)
        return worker_id if view is not None and view.shared else ""
