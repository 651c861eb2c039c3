"""The states of a request, its restarts, and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from router.cluster import commands
from router.cluster.cluster_view import ClusterView
from router.cluster.links import WorkerLink
from router.dispatch.held_leases import HeldLeases
from router.dispatch.reservations import Reservations
from router.requests.events import RequestEvents
from router.requests.finished_message import finished_message
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.output_buffer import StreamItem
from router.requests.request_record import Ending, record_of
from services.rpc.errors import RequestError, WorkerLostError
from services.slo.admission import AdmissionCore
from services.slo.latency_forecast import Placement
from services.state.journal_entry import RequestState
from services.telemetry.logs import about
from slos_serve.v1 import sampling_pb2

log = logging.getLogger(__name__)


class Lifecycle:
    """Takes requests from state to state, and tells everyone concerned: workers, the index, the events, the client."""

    def __init__(
        self,
        cluster: ClusterView,
        core: AdmissionCore,
        requests: LiveRequests,
        links: Mapping[str, WorkerLink],
        max_restarts: int,
        clock: Callable[[], float],
        events: RequestEvents,
    ) -> None:
        """
        Args:
            links: the connected workers, by id; the mapping is kept up by its owner.
            max_restarts: failed attempts after which a request is given up, beyond the first.
        """
        self.leases = HeldLeases(links)
        self.idle = asyncio.Event()
        """Set while this router has no request."""
        self.idle.set()
        self._reservations = Reservations(cluster, core, links)
        self._cluster = cluster
        self._core = core
        self._requests = requests
        self._links = links
        self._max_restarts = max_restarts
        self._clock = clock
        self._events = events

    def enter(self, request: LiveRequest, state: RequestState) -> None:
        """Take a request into another state."""
        self.idle.clear()
        request.enter(state)
        self._file(request)
        self._events.entered(request)

    def move(self, request: LiveRequest, placement: Placement) -> None:
        """Send a request somewhere else."""
        request.move(placement)
        self._file(request)

    def give_room(self, request: LiveRequest, placement: Placement) -> None:
        """Give a queued best-effort prompt room in the plan."""
        request.give_room(placement)
        self._file(request)

    def restart(self, request: LiveRequest, why: str, *, counted: bool = True) -> None:
        """Queue a request again, to go on from the tokens delivered so far; the attempt under way does not count.

        Args:
            why: what became of the attempt, in words.
            counted: the attempt counts towards the limit of restarts; beyond the limit the request fails.
        """
        if counted:
            request.count_restart()
            self._events.restarted(request)
            if request.restarts > self._max_restarts:
                # Why it was lost last names workers and their addresses, which are the log's business.
                log.warning("request %s is given up: %s", request.request_id, why)
                self.fail(request, WorkerLostError(f"gave up after {request.restarts} restarts"))
                return
        log.warning(
            "request %s starts again at token %d: %s",
            request.request_id,
            len(request.generated),
            why,
            extra=_ids(request),
        )
        self.leases.give_up(request)
        request.start_again(self._clock())
        self.enter(request, RequestState.QUEUED)

    def stop_worker(self, request: LiveRequest) -> None:
        """Tell the worker that works on a request to abort it, and give up its lease once that is safe."""
        link = self._links.get(request.worker_id)
        if link is None:
            return
        self._core.stopping(request, self._clock())
        link.send(commands.abort(request))
        self.leases.give_up_after_abort(request)

    def finish(
        self,
        request: LiveRequest,
        reason: sampling_pb2.FinishReason.ValueType,
        matched: str,
        *,
        text_complete: bool = False,
    ) -> None:
        """End a request whose output is complete.

        Args:
            matched: the stop string, or the stop token's id, that ended the output; empty if none did.
            text_complete: a stop string ended the text, so that what is held back of it is not delivered.
        """
        now_s = self._clock()
        stop = request.complete(now_s, text_complete=text_complete)
        if stop:
            reason, matched = sampling_pb2.FINISH_REASON_STOP, stop
        self._close(request, RequestState.DONE, finished_message(request, reason, matched, now_s))

    def fail(self, request: LiveRequest, error: RequestError) -> None:
        """End a request with an error."""
        log.warning("request %s failed: %s", request.request_id, error, extra=_ids(request))
        self.stop_worker(request)
        self._close(request, RequestState.FAILED, error)

    def cancel(self, request: LiveRequest) -> None:
        """End a request that nobody wants any more."""
        self.stop_worker(request)
        last = finished_message(request, sampling_pb2.FINISH_REASON_ABORT, "", self._clock())
        self._close(request, RequestState.CANCELLED, last)

    def _close(self, request: LiveRequest, state: RequestState, last: StreamItem) -> None:
        """End a request: the only way out of the index, and the only place that tells of an end."""
        self.leases.give_up(request)
        cut_off = state is not RequestState.DONE or len(request.generated) >= request.parsed.sampling.max_tokens
        self.enter(request, state)
        self._remove(request, complete=not cut_off)
        error = last if isinstance(last, RequestError) else None
        record = record_of(request, self._clock(), self._idle_prefill_s, "" if error is None else str(error))
        self._events.ended(request, record, error)
        if record.ending is Ending.MISSED and record.attainment is not None:
            log.info("request %s: %s", request.request_id, record.attainment.missed, extra=_ids(request))
        else:
            log.debug("request %s: %s", request.request_id, record.ending.value, extra=_ids(request))
        if not len(self._requests):
            self.idle.set()
        request.output_buffer.end(last)

    def _file(self, request: LiveRequest) -> None:
        """Have the admission core and the decode workers know the state and the placement that a request has now."""
        self._requests.file(request)
        self._core.filed(request)
        self._reservations.follow(request)

    def _remove(self, request: LiveRequest, *, complete: bool) -> None:
        """Have everyone forget a request that has ended."""
        self._core.removed(request, complete=complete)
        self._requests.remove(request)

    def _idle_prefill_s(self, request: LiveRequest) -> float:
        """Return the seconds that the request's prompt takes an idle worker; 0 if the worker is gone."""
        view = self._cluster.workers.get(request.prefill_worker_id)
        if view is None:
            return 0.0
        computed = len(request.parsed.prompt) - request.cached_tokens
        return view.state.model.prefill_s(computed, view.facts.max_step_tokens)


def _ids(request: LiveRequest) -> dict[str, str]:
    return about(request.request_id, request.trace_id)
