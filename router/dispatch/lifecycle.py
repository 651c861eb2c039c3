"""The states of a request, how it starts again, and its ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from router.cluster import commands
from router.cluster.cluster_view import ClusterView
from router.cluster.links import WorkerLink
from router.cluster.memory import MemoryPromises
from router.cluster.step_under_way import note_stop
from router.dispatch.leases import LeaseBook
from router.dispatch.reservations import Reservations
from router.observability.counters import Counters
from router.observability.history import Ending, History, record_of
from router.observability.recorder import Recorder
from router.requests.live_request import LiveRequest
from router.requests.output_buffer import StreamItem
from router.requests.phases import Phase
from router.requests.request_index import Requests
from services.rpc.errors import RequestError, WorkerLostError
from services.slo.latency_forecast import Placement
from services.state.journal import RequestJournal, RequestState
from services.telemetry.logs import about
from slos_serve.v1 import sampling_pb2

log = logging.getLogger(__name__)


class Lifecycle:
    """Changes a request's state and tells everyone who must know: the index, the journal, the counters, its client."""

    def __init__(
        self,
        cluster: ClusterView,
        requests: Requests,
        memory: MemoryPromises,
        journal: RequestJournal,
        links: Mapping[str, WorkerLink],
        max_restarts: int,
        clock: Callable[[], float],
        counters: Counters,
        history: History,
        recorder: Recorder,
    ) -> None:
        self.leases = LeaseBook(links)
        self._expectations = Reservations(cluster, memory, links)
        self.idle = asyncio.Event()
        """Set while no request is here."""
        self.idle.set()
        self._cluster = cluster
        self._requests = requests
        self._memory = memory
        self._journal = journal
        self._links = links
        self._max_restarts = max_restarts
        self._clock = clock
        self._counters = counters
        self._history = history
        self._recorder = recorder

    def restart(self, request: LiveRequest, why: str, *, counted: bool = True) -> None:
        """Start again from the tokens delivered so far; answers to the attempt before are ignored from here on."""
        now_s = self._clock()
        if counted:
            request.restarts += 1
            self._counters.restarts += 1
            if request.restarts > self._max_restarts:
                self.fail(request, WorkerLostError(f"gave up after {request.restarts} restarts: {why}"))
                return
        log.warning(
            "request %s starts again at token %d: %s",
            request.request_id,
            len(request.generated),
            why,
            extra=_ids(request),
        )
        self.leases.give_up(request)
        request.attempt += 1
        request.prefilled_tokens = 0
        request.planned = request.guaranteed
        request.clock.enter(Phase.RESTART, now_s)
        next_due_s = request.meter.next_due_s()
        request.due_s = now_s if next_due_s is None else min(now_s, next_due_s)
        self.enter(request, RequestState.QUEUED)

    def stop_worker(self, request: LiveRequest) -> None:
        """Tell the worker at work on a request to let go, and free its lease once that is safe."""
        link = self._links.get(request.worker_id)
        if link is None:
            return
        view = self._cluster.workers.get(request.worker_id)
        if view is not None:
            note_stop(view, request, self._requests, self._clock())
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
        stop = "" if text_complete else request.flush_text()
        if stop:
            reason, matched = sampling_pb2.FINISH_REASON_STOP, stop
        request.meter.end(self._clock())
        self._counters.finish(request)
        self.end(request, RequestState.DONE, reason, matched)

    def fail(self, request: LiveRequest, error: RequestError) -> None:
        log.warning("request %s failed: %s", request.request_id, error, extra=_ids(request))
        self._counters.failed += 1
        self.stop_worker(request)
        self._close(request, RequestState.FAILED, error)

    def end(
        self,
        request: LiveRequest,
        state: RequestState,
        reason: sampling_pb2.FinishReason.ValueType,
        matched: str = "",
    ) -> None:
        self._close(request, state, request.finished_message(reason, matched, self._clock()))

    def _close(self, request: LiveRequest, state: RequestState, last: StreamItem) -> None:
        self.leases.give_up(request)
        cut_off = state is not RequestState.DONE or len(request.generated) >= request.parsed.sampling.max_tokens
        self._memory.ended(request, complete=not cut_off)
        self.enter(request, state)
        self._requests.remove(request)
        error = last if isinstance(last, RequestError) else None
        record = record_of(request, self._clock(), self._idle_prefill_s, "" if error is None else str(error))
        self._history.ended(record)
        self._recorder.ended(request, record, error)
        if record.ending is Ending.MISSED and record.attainment is not None:
            log.info("request %s: %s", request.request_id, record.attainment.missed, extra=_ids(request))
        else:
            log.debug("request %s: %s", request.request_id, record.ending.value, extra=_ids(request))
        if not len(self._requests):
            self.idle.set()
        request.delivery.end(last)

    def enter(self, request: LiveRequest, state: RequestState) -> None:
        """The request is in another state from now on."""
        self.idle.clear()
        request.state = state
        self._requests.file(request)
        self._expectations.follow(request)
        self._journal.update(
            request.request_id,
            state=state,
            attempt=request.attempt,
            prefill_worker_id=request.prefill_worker_id,
            prefill_engine_epoch=self._epoch(request.prefill_worker_id),
            decode_worker_id=request.decode_worker_id,
            decode_engine_epoch=self._epoch(request.decode_worker_id),
            tokens_delivered=len(request.generated),
        )

    def _epoch(self, worker_id: str) -> str:
        view = self._cluster.workers.get(worker_id)
        return "" if view is None else view.facts.engine_epoch

    def _idle_prefill_s(self, request: LiveRequest) -> float:
        """What its prompt takes a worker that has nothing else to do; 0 if the worker is gone."""
        view = self._cluster.workers.get(request.prefill_worker_id)
        if view is None:
            return 0.0
        return view.model.prefill_s(len(request.parsed.prompt) - request.cached_tokens, view.facts.max_step_tokens)

    def move(self, request: LiveRequest, placement: Placement) -> None:
        request.replace_placement(placement)
        self._requests.file(request)
        self._expectations.follow(request)


def _ids(request: LiveRequest) -> dict[str, str]:
    return about(request.request_id, request.trace_id)
