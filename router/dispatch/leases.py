"""The KV caches that prefill workers hold for this router's requests, and when each is let go."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from router.cluster import commands
from router.cluster.links import WorkerLink
from router.requests.live_request import Lease, LiveRequest
from services.state.journal import RequestState
from services.telemetry.logs import about
from slos_serve.v1 import worker_pb2

log = logging.getLogger(__name__)


class LeaseBook:
    """Gives up leases that no decode worker will pull.

    The lease of a cancelled request is kept until its decode worker says that it let go: it may be reading still.
    """

    def __init__(self, links: Mapping[str, WorkerLink]) -> None:
        self._links = links
        self._holders: dict[str, LiveRequest] = {}
        """By lease id."""
        self._after_abort: dict[tuple[str, int], tuple[Lease, str]] = {}
        """By request and attempt: the lease, and the decode worker that may be reading."""

    def hold(self, request: LiveRequest, lease: Lease) -> None:
        """A worker holds the KV cache of a request."""
        request.lease = lease
        self._holders[lease.handle.lease_id] = request

    def give_up(self, request: LiveRequest) -> None:
        """Free the KV cache of a request at once; nobody reads it."""
        self._release(self._take(request))

    def give_up_after_abort(self, request: LiveRequest) -> None:
        """Free it when the decode worker has confirmed the abort."""
        if request.lease is not None and request.state is RequestState.HANDOVER:
            self._after_abort[(request.request_id, request.attempt)] = (request.lease, request.decode_worker_id)
            self._take(request)

    def aborted(self, request_id: str, attempt: int) -> None:
        """A worker has let go of a request."""
        lease, _ = self._after_abort.pop((request_id, attempt), (None, ""))
        self._release(lease)

    def closed(self, closed: worker_pb2.LeaseClosed) -> None:
        """The owner reports how a lease ended."""
        request = self._holders.get(closed.lease_id)
        if request is not None:
            self._take(request)
            if closed.outcome == worker_pb2.LEASE_OUTCOME_EXPIRED:
                log.warning(
                    "request %s: the lease on its KV cache expired",
                    request.request_id,
                    extra=about(request.request_id, request.trace_id),
                )

    def worker_lost(self, worker_id: str, requests: Iterable[LiveRequest]) -> None:
        """The KV caches that it held are gone with it; what it was reading is read no more."""
        for request in requests:
            if request.lease is not None and request.lease.handle.worker_id == worker_id:
                self._take(request)
        for key, (lease, reader_id) in list(self._after_abort.items()):
            if lease.handle.worker_id == worker_id:
                del self._after_abort[key]
            elif reader_id == worker_id:
                self.aborted(*key)

    def _take(self, request: LiveRequest) -> Lease | None:
        lease, request.lease = request.lease, None
        if lease is not None:
            self._holders.pop(lease.handle.lease_id, None)
        return lease

    def _release(self, lease: Lease | None) -> None:
        link = self._links.get(lease.handle.worker_id) if lease is not None else None
        if lease is not None and link is not None:
            link.send(commands.release_kv(lease.handle.lease_id))
