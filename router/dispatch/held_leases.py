"""The leases on KV caches that workers hold for this router's requests, and when each is given up."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from router.cluster import commands
from router.cluster.links import WorkerLink
from router.requests.held_lease import HeldLease
from router.requests.live_request import LiveRequest
from services.state.journal_entry import RequestState
from services.telemetry.logs import about
from slos_serve.v1 import worker_pb2

log = logging.getLogger(__name__)


class HeldLeases:
    """Gives up the leases that no decode worker will pull.

    A cancelled request's lease is kept until the decode worker has confirmed the abort, because that worker may still
    be reading the KV cache.
    """

    def __init__(self, links: Mapping[str, WorkerLink]) -> None:
        """
        Args:
            links: the connected workers, by id; the mapping is kept up by its owner.
        """
        self._links = links
        self._requests: dict[str, LiveRequest] = {}
        """The request that each lease is held for, by lease id."""
        self._after_abort: dict[tuple[str, int], tuple[HeldLease, str]] = {}
        """The leases to be given up once an abort is confirmed, by request id and attempt, each with the id of the
        decode worker that may be reading.
        """

    def hold(self, request: LiveRequest, lease: HeldLease) -> None:
        """Note that a worker holds the KV cache of a request."""
        request.hold(lease)
        self._requests[lease.handle.lease_id] = request

    def give_up(self, request: LiveRequest) -> None:
        """Have the KV cache of a request freed at once. Nobody may be reading it."""
        self._release(self._take(request))

    def give_up_after_abort(self, request: LiveRequest) -> None:
        """Have the KV cache of a request freed once its decode worker confirms the abort.

        Nothing is done for a request that is not being handed over: no decode worker reads its KV cache.
        """
        if request.lease is not None and request.state is RequestState.HANDOVER:
            self._after_abort[(request.request_id, request.attempt)] = (request.lease, request.decode_worker_id)
            self._take(request)

    def aborted(self, request_id: str, attempt: int) -> None:
        """Note that a worker has confirmed the abort of one attempt at a request."""
        lease, _ = self._after_abort.pop((request_id, attempt), (None, ""))
        self._release(lease)

    def closed(self, closed: worker_pb2.LeaseClosed) -> None:
        """Note that a lease has ended, as the worker that held the KV cache reports."""
        request = self._requests.get(closed.lease_id)
        if request is not None:
            self._take(request)
            if closed.outcome == worker_pb2.LEASE_OUTCOME_EXPIRED:
                log.warning(
                    "request %s: the lease on its KV cache expired",
                    request.request_id,
                    extra=about(request.request_id, request.trace_id),
                )

    def worker_lost(self, worker_id: str, requests: Iterable[LiveRequest]) -> None:
        """Forget the KV caches that a lost worker held, and give up those that it alone may have been reading."""
        for request in requests:
            if request.lease is not None and request.lease.handle.worker_id == worker_id:
                self._take(request)
        for key, (lease, reader_id) in list(self._after_abort.items()):
            if lease.handle.worker_id == worker_id:
                del self._after_abort[key]
            elif reader_id == worker_id:
                self.aborted(*key)

    def _take(self, request: LiveRequest) -> HeldLease | None:
        lease = request.drop_lease()
        if lease is not None:
            self._requests.pop(lease.handle.lease_id, None)
        return lease

    def _release(self, lease: HeldLease | None) -> None:
        link = self._links.get(lease.handle.worker_id) if lease is not None else None
        if lease is not None and link is not None:
            link.send(commands.release_kv(lease.handle.lease_id))
