"""Moves every request from worker to worker: queue, prefill, hand-over, decode; and again when a worker is lost.

The only writer of `LiveRequest`s. Everything runs on the event loop in response to one of: a request comes, a client
cancels, a worker reports, a worker is lost, the timer ticks. Nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from router import capacity, commands
from router.admission import Assessment, admit
from router.cluster_view import ClusterView, WorkerView
from router.counters import Counters
from router.leases import LeaseBook
from router.links import WorkerLink
from router.live_request import Lease, LiveRequest, StreamItem
from router.phases import Phase
from services.rpc import wire
from services.rpc.errors import InvalidRequestError, NoWorkerError, RequestError, WorkerLostError
from services.state.journal import RequestJournal, RequestState
from services.state.registry import WorkerRole
from slos_serve.v1 import sampling_pb2, worker_pb2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """See `RouterSettings`."""

    max_restarts: int
    best_effort_patience_s: float
    no_worker_patience_s: float


class Dispatcher:
    """Owns every running request of this router and the links to the workers."""

    def __init__(
        self,
        cluster: ClusterView,
        journal: RequestJournal,
        options: DispatchOptions,
        clock: Callable[[], float],
        counters: Counters,
    ) -> None:
        self.cluster = cluster
        self.requests: dict[str, LiveRequest] = {}
        self.counters = counters
        self.idle = asyncio.Event()
        """Set while no request is here."""
        self.idle.set()
        self._journal = journal
        self._options = options
        self._clock = clock
        self._links: dict[str, WorkerLink] = {}
        self._leases = LeaseBook(self._links)
        self._unusable_since_s: float | None = clock()

    # From the front end.

    def accept(self, request: LiveRequest) -> None:
        """Queue an admitted request."""
        self.requests[request.request_id] = request
        self.idle.clear()
        self._enter(request, RequestState.QUEUED)
        self.pump()

    def cancel(self, request_id: str) -> bool:
        """End a request wherever it is. False if no such request is running."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._stop_worker(request)
        self.counters.cancelled += 1
        self._end(request, RequestState.CANCELLED, sampling_pb2.FINISH_REASON_ABORT)
        return True

    # From the links.

    def connected(self, link: WorkerLink, description: wire.WorkerDescription) -> None:
        log.info("worker %s is connected at %s", link.worker_id, link.record.address)
        self._links[link.worker_id] = link
        self.cluster.put(WorkerView.of(description, link.record.address))
        self.pump()

    def lost(self, link: WorkerLink, why: str) -> None:
        """Its requests are started again elsewhere, from the last token delivered."""
        if self._links.get(link.worker_id) is not link:
            return
        view = self.cluster.workers[link.worker_id]
        del self._links[link.worker_id]
        self.cluster.remove(link.worker_id)
        log.log(logging.INFO if view.draining else logging.WARNING, "worker %s is gone: %s", link.worker_id, why)
        if not view.draining:
            self.counters.workers_lost += 1
        self._leases.worker_lost(link.worker_id, self.requests.values())
        for request in list(self.requests.values()):
            if request.worker_id == link.worker_id:
                self._restart(request, f"worker {link.worker_id} was lost")
        self.pump()

    def event(self, link: WorkerLink, event: worker_pb2.SessionResponse) -> None:
        view = self.cluster.workers.get(link.worker_id)
        if view is None or self._links.get(link.worker_id) is not link:
            return
        match event.WhichOneof("event"):
            case "step":
                view.observe(event.step, self._clock())
                for output in event.step.outputs:
                    self._output(link, view, output)
                self.pump()
            case "load":
                view.load = wire.load_from_wire(event.load)
            case "request_failed":
                self._request_failed(link, event.request_failed)
            case "lease_closed":
                self._leases.closed(event.lease_closed, self.requests.values())
            case "aborted":
                self._leases.aborted(event.aborted.request_id, event.aborted.attempt)
            case "draining":
                log.info("worker %s drains", link.worker_id)
                view.draining = True
                self.pump()

    # From the timer.

    def tick(self) -> None:
        """What no event brings: requests that wait although there is no worker."""
        now_s = self._clock()
        if self.cluster.groups():
            self._unusable_since_s = None
            self.pump()
            return
        self._unusable_since_s = self._unusable_since_s if self._unusable_since_s is not None else now_s
        if now_s - self._unusable_since_s > self._options.no_worker_patience_s:
            for request in capacity.queued(self.requests.values()):
                self._fail(request, NoWorkerError(self.cluster.missing(), retry_after_s=1.0))

    def pump(self) -> None:
        """Hand queued prompts to prefill workers, in order of due time, as far as there is room."""
        now_s = self._clock()
        full: set[str] = set()
        for request in capacity.queued(self.requests.values()):
            if not self._ensure_placed(request, now_s):
                continue
            wanted = {request.placement.prefill_worker_id, request.decode_worker_id}
            if wanted & full:
                continue
            prefill = self._links[request.placement.prefill_worker_id]
            others = self.requests.values()
            if not capacity.prefill_room(self.cluster.workers[prefill.worker_id], others, request):
                full.add(prefill.worker_id)
            elif not capacity.decode_room(self.cluster.workers[request.decode_worker_id], others, request):
                full.add(request.decode_worker_id)
            else:
                self._start_prefill(prefill, request, now_s)

    # Steps of a request's way.

    def _ensure_placed(self, request: LiveRequest, now_s: float) -> bool:
        """Place the request again if one of its workers is gone. False if there is nowhere to go now."""
        if self.cluster.usable(request.placement.prefill_worker_id) and self.cluster.usable(request.decode_worker_id):
            return True
        try:
            admitted = self._place(request, now_s)
        except NoWorkerError:
            return False
        except RequestError as error:
            self._fail(request, error)
            return False
        request.replace_placement(admitted.placement)
        return True

    def _place(self, request: LiveRequest, now_s: float) -> Assessment:
        others = [other for other in self.requests.values() if other is not request]
        return admit(request.continuation(), self.cluster, others, now_s, now_s, self._options.best_effort_patience_s)

    def _start_prefill(self, link: WorkerLink, request: LiveRequest, now_s: float) -> None:
        if not capacity.prefilling(self.requests.values(), link.worker_id):
            self.cluster.workers[link.worker_id].step_began_s = now_s
        request.prefill_worker_id = link.worker_id
        request.submitted_s = now_s
        if request.restarts == 0:
            request.clock.enter(Phase.PREFILL_WAIT, now_s)
        ends_here = request.parsed.sampling.max_tokens - len(request.generated) <= 1
        link.send(commands.submit(request, now_s, export_kv=not ends_here))
        self._enter(request, RequestState.PREFILLING)

    def _start_decode(self, request: LiveRequest, now_s: float) -> None:
        """Hand the request over. Without a decode worker it goes back to the queue."""
        if not self.cluster.usable(request.decode_worker_id):
            try:
                request.replace_placement(self._place(request, now_s).placement)
            except RequestError:
                self._restart(request, "no decode worker is there to hand over to", counted=False)
                return
        link = self._links[request.decode_worker_id]
        request.submitted_s = now_s
        link.send(commands.submit(request, now_s, lease=request.lease))
        self._enter(request, RequestState.HANDOVER)

    def _output(self, link: WorkerLink, view: WorkerView, output: worker_pb2.RequestOutput) -> None:
        now_s = self._clock()
        request = self.requests.get(output.request_id)
        if request is None or request.attempt != output.attempt or request.worker_id != link.worker_id:
            if output.HasField("kv"):
                link.send(commands.release_kv(output.kv.lease_id))
            return
        if output.HasField("timings"):
            self._timings(request, view, output.timings, now_s)
        if output.HasField("kv"):
            request.lease = Lease(wire.kv_handle_from_wire(output.kv), now_s)
        matched = request.take_tokens(output, now_s)
        self._journal.update(request.request_id, tokens_delivered=len(request.generated))
        if view.role is WorkerRole.PREFILL and output.token_ids:
            request.clock.enter(Phase.HANDOVER, now_s)
        reason = output.finish_reason
        if matched:
            if not reason:
                self._stop_worker(request)
            self._finish(request, sampling_pb2.FINISH_REASON_STOP, matched, text_complete=True)
        elif reason in (sampling_pb2.FINISH_REASON_ABORT, sampling_pb2.FINISH_REASON_ERROR):
            self._restart(request, f"worker {link.worker_id} gave it up")
        elif request.state is RequestState.PREFILLING and reason == sampling_pb2.FINISH_REASON_LENGTH:
            if len(request.generated) < request.parsed.sampling.max_tokens:
                self._start_decode(request, now_s)
            else:
                self._finish(request, reason, "")
        elif reason:
            self._finish(request, reason, str(output.stop_token_id) if output.HasField("stop_token_id") else "")

    def _timings(
        self, request: LiveRequest, view: WorkerView, timings: worker_pb2.RequestTimings, now_s: float
    ) -> None:
        """The first output of a request on a worker tells when it began there."""
        began_s = request.submitted_s + timings.wait_s
        request.cached_tokens = max(request.cached_tokens, timings.cached_tokens)
        if request.state is RequestState.PREFILLING:
            if request.restarts == 0:
                request.clock.entered(Phase.PREFILL, began_s, now_s)
            return
        request.clock.entered(Phase.DECODE, began_s, now_s)
        if timings.HasField("kv_pull"):
            request.kv_pull = timings.kv_pull
        if timings.kv_recompute_reason:
            request.kv_recomputes += 1
            self.counters.kv_recomputes += 1
            log.warning(
                "request %s: %s computed the KV cache again: %s",
                request.request_id,
                view.worker_id,
                timings.kv_recompute_reason,
            )
            self._leases.give_up(request)
        self._enter(request, RequestState.DECODING)

    def _request_failed(self, link: WorkerLink, failure: worker_pb2.RequestFailed) -> None:
        request = self.requests.get(failure.request_id)
        if request is None or request.attempt != failure.attempt or request.worker_id != link.worker_id:
            return
        match failure.kind:
            case worker_pb2.FAILURE_KIND_INVALID:
                self._fail(request, InvalidRequestError(failure.detail))
            case worker_pb2.FAILURE_KIND_NOT_ACCEPTING:
                # Not its fault if the worker drains; a worker that is full would be asked again at once, for ever.
                draining = self.cluster.workers[link.worker_id].draining
                self._restart(request, f"{link.worker_id} takes nothing: {failure.detail}", counted=not draining)
            case _:
                self._restart(request, f"worker {link.worker_id}: {failure.detail}")
        self.pump()

    def _restart(self, request: LiveRequest, why: str, *, counted: bool = True) -> None:
        """Start again from the tokens delivered so far; answers to the attempt before are ignored from here on."""
        now_s = self._clock()
        if counted:
            request.restarts += 1
            self.counters.restarts += 1
            if request.restarts > self._options.max_restarts:
                self._fail(request, WorkerLostError(f"gave up after {request.restarts} restarts: {why}"))
                return
        log.warning("request %s starts again at token %d: %s", request.request_id, len(request.generated), why)
        self._leases.give_up(request)
        request.attempt += 1
        request.clock.enter(Phase.RESTART, now_s)
        next_due_s = request.meter.next_due_s()
        request.due_s = now_s if next_due_s is None else min(now_s, next_due_s)
        self._enter(request, RequestState.QUEUED)

    def _stop_worker(self, request: LiveRequest) -> None:
        """Tell the worker at work on a request to let go, and free its lease once that is safe."""
        link = self._links.get(request.worker_id)
        if link is None:
            return
        link.send(commands.abort(request))
        self._leases.give_up_after_abort(request)

    # Ends.

    def _finish(
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
        self.counters.finish(request)
        self._end(request, RequestState.DONE, reason, matched)

    def _fail(self, request: LiveRequest, error: RequestError) -> None:
        log.warning("request %s failed: %s", request.request_id, error)
        self.counters.failed += 1
        self._stop_worker(request)
        self._close(request, RequestState.FAILED, error)

    def _end(
        self,
        request: LiveRequest,
        state: RequestState,
        reason: sampling_pb2.FinishReason.ValueType,
        matched: str = "",
    ) -> None:
        self._close(request, state, request.finished_message(reason, matched, self._clock()))

    def _close(self, request: LiveRequest, state: RequestState, last: StreamItem) -> None:
        self._leases.give_up(request)
        self._enter(request, state)
        del self.requests[request.request_id]
        if not self.requests:
            self.idle.set()
        request.emit(last)

    def _enter(self, request: LiveRequest, state: RequestState) -> None:
        request.state = state
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
        view = self.cluster.workers.get(worker_id)
        return "" if view is None else view.facts.engine_epoch
