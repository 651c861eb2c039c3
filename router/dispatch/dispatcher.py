"""Moves every request from worker to worker: queue, prefill, hand-over, decode; and again when a worker is lost.

The only writer of `LiveRequest`s. Everything runs on the event loop in response to one of: a request comes, a client
cancels, a worker reports, a worker is lost, the timer ticks. Nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from router.admission.committed_loads import CommittedLoads
from router.cluster import commands
from router.cluster.cluster_view import SUBMISSION_S, ClusterView, WorkerView
from router.cluster.links import WorkerLink
from router.cluster.memory import MemoryPromises
from router.cluster.prefixes import PrefixIndex
from router.dispatch import capacity
from router.dispatch.lifecycle import Lifecycle
from router.observability.counters import Counters
from router.observability.history import History
from router.observability.recorder import Recorder
from router.requests.live_request import Lease, LiveRequest
from router.requests.phases import Phase
from router.requests.request_index import Requests
from services import wire
from services.rpc.errors import InvalidRequestError, NoWorkerError, RequestError
from services.slo.latency_forecast import Placement
from services.slo.lengths import REFORECAST_TOKENS
from services.slo.transfer import Handovers
from services.state.journal import RequestJournal, RequestState
from services.telemetry.logs import about
from slos_serve.v1 import sampling_pb2, worker_pb2

log = logging.getLogger(__name__)

LEARN_EVERY_S = 0.02
"""Hand-overs to a worker that follow each other faster tell nothing new."""


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """See `RouterSettings`."""

    max_restarts: int
    no_worker_patience_s: float


class Planning(Protocol):
    """What the dispatcher asks of, and tells, whoever plans."""

    def place_again(self, request: LiveRequest, now_s: float) -> Placement:
        """
        Raises:
            NoWorkerError, InvalidRequestError: there is nowhere to go now, or at all.
        """
        ...

    def changed(self) -> None:
        """Something on a worker changed."""
        ...

    def worker_gone(self, worker_id: str) -> None: ...


class Dispatcher:
    """Owns every running request of this router and the links to the workers."""

    def __init__(
        self,
        cluster: ClusterView,
        requests: Requests,
        memory: MemoryPromises,
        holdings: CommittedLoads,
        handovers: Handovers,
        prefixes: PrefixIndex,
        journal: RequestJournal,
        options: DispatchOptions,
        clock: Callable[[], float],
        counters: Counters,
        history: History,
        recorder: Recorder,
    ) -> None:
        self.cluster = cluster
        self.requests = requests
        self.counters = counters
        self.history = history
        self.planning: Planning
        """To be set before anything is accepted."""
        self._memory = memory
        self._holdings = holdings
        self._handovers = handovers
        self._prefixes = prefixes
        self._journal = journal
        self._no_worker_patience_s = options.no_worker_patience_s
        self._clock = clock
        self._links: dict[str, WorkerLink] = {}
        self._life = Lifecycle(
            cluster, requests, memory, journal, self._links, options.max_restarts, clock, counters, history, recorder
        )
        self._unusable_since_s: float | None = clock()

    @property
    def idle(self) -> asyncio.Event:
        """Set while no request is here."""
        return self._life.idle

    # From the front end.

    def accept(self, request: LiveRequest) -> None:
        """Queue an admitted request."""
        self._life.enter(request, RequestState.QUEUED)
        self._fill(request.placement.prefill_worker_id)

    def give_room(self, request: LiveRequest, placement: Placement) -> None:
        """A request that waits in the queue has got room in the plan."""
        if request.state is RequestState.QUEUED:
            request.planned = True
            request.due_s = placement.due_s
            self._life.move(request, placement)
            self._fill(placement.prefill_worker_id)

    def cancel(self, request_id: str) -> bool:
        """End a request wherever it is. False if no such request is running."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._life.stop_worker(request)
        self.counters.cancelled += 1
        self._life.end(request, RequestState.CANCELLED, sampling_pb2.FINISH_REASON_ABORT)
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
        self.planning.worker_gone(link.worker_id)
        self._life.leases.worker_lost(link.worker_id, self.requests)
        for request in self.requests:
            if request.worker_id == link.worker_id:
                self._life.restart(request, f"worker {link.worker_id} was lost")
        self.pump()

    def event(self, link: WorkerLink, event: worker_pb2.SessionResponse) -> None:
        view = self.cluster.workers.get(link.worker_id)
        if view is None or self._links.get(link.worker_id) is not link:
            return
        match event.WhichOneof("event"):
            case "step":
                self._step(link, view, event.step)
            case "load":
                view.heard(event.load, self._clock())
                self.planning.changed()
            case "request_failed":
                self._request_failed(link, event.request_failed)
            case "lease_closed":
                self._life.leases.closed(event.lease_closed)
            case "aborted":
                self._life.leases.aborted(event.aborted.request_id, event.aborted.attempt)
            case "draining":
                log.info("worker %s drains", link.worker_id)
                self.cluster.drain(link.worker_id)
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
        if now_s - self._unusable_since_s > self._no_worker_patience_s:
            for request in self.requests.queued():
                self._life.fail(request, NoWorkerError(self.cluster.missing(), retry_after_s=1.0))

    def pump(self) -> None:
        """Hand queued prompts to workers, as far as there is room. Those whose workers are gone are placed again."""
        now_s = self._clock()
        for request in self.requests.queued():
            self._ensure_placed(request, now_s)
        for worker_id in list(self._links):
            self._fill(worker_id)
        self.planning.changed()

    def _fill(self, worker_id: str) -> None:
        """Hand queued prompts to one worker, in order of due time; what has no room in the plan comes last."""
        worker = self.cluster.workers.get(worker_id)
        if worker is None or not self.cluster.usable(worker_id):
            return
        full: set[str] = set()
        now_s = self._clock()
        for request in sorted(self.requests.awaiting(worker_id), key=lambda request: not request.planned):
            there = self.cluster.workers.get(request.decode_worker_id)
            if there is None or there.worker_id in full:
                continue
            if not capacity.prefill_room(worker, self.requests, request, now_s):
                continue
            if capacity.decode_room(there, self.requests, self._holdings, request):
                self._start_prefill(self._links[worker_id], request, now_s)
            else:
                full.add(there.worker_id)

    # Steps of a request's way.

    def _step(self, link: WorkerLink, view: WorkerView, report: worker_pb2.StepReport) -> None:
        """One engine step: what it computed, and who may come next."""
        now_s = self._clock()
        view.observe(report, now_s)
        ended = False
        for output in report.outputs:
            self._output(link, view, output, now_s)
            ended = ended or bool(output.finish_reason)
        self._fill(view.worker_id)
        if ended:
            self.pump()
        else:
            self.planning.changed()

    def _ensure_placed(self, request: LiveRequest, now_s: float) -> None:
        """Place the request again if one of its workers is gone; it stays as it is while there is nowhere to go."""
        if self.cluster.usable(request.placement.prefill_worker_id) and self.cluster.usable(request.decode_worker_id):
            return
        try:
            self._life.move(request, self.planning.place_again(request, now_s))
        except NoWorkerError:
            return
        except RequestError as error:
            self._life.fail(request, error)

    def _start_prefill(self, link: WorkerLink, request: LiveRequest, now_s: float) -> None:
        worker = self.cluster.workers[link.worker_id]
        if worker.load.running_requests == 0 and not self.requests.prefilling_count(link.worker_id):
            worker.step_began_s = now_s + SUBMISSION_S
        request.prefill_worker_id = link.worker_id
        holders = dict(self._prefixes.holders(request.parsed.prompt, worker.facts.compatibility.block_tokens))
        request.prefilled_tokens = request.believed_cached_tokens = holders.get(link.worker_id, 0)
        request.submitted_s = now_s
        if request.restarts == 0:
            request.clock.enter(Phase.PREFILL_WAIT, now_s)
        ends_here = request.parsed.sampling.max_tokens - len(request.generated) <= 1
        export_kv = not (ends_here or request.placement.local)
        link.send(commands.submit(request, now_s, self._memory.of(request), export_kv=export_kv))
        self._life.enter(request, RequestState.PREFILLING)

    def _start_decode(self, request: LiveRequest, now_s: float) -> None:
        """Hand the request over. Without a decode worker it goes back to the queue."""
        if not self.cluster.usable(request.decode_worker_id):
            try:
                self._life.move(request, self.planning.place_again(request, now_s))
            except RequestError:
                self._life.restart(request, "no decode worker is there to hand over to", counted=False)
                return
        link = self._links[request.decode_worker_id]
        request.submitted_s = now_s
        link.send(commands.submit(request, now_s, self._memory.of(request), lease=request.lease))
        self._life.enter(request, RequestState.HANDOVER)

    def _output(self, link: WorkerLink, view: WorkerView, output: worker_pb2.RequestOutput, now_s: float) -> None:
        request = self.requests.get(output.request_id)
        if request is None or request.attempt != output.attempt or request.worker_id != view.worker_id:
            if output.HasField("kv"):
                link.send(commands.release_kv(output.kv.lease_id))
            return
        if output.prefilled_tokens:
            request.prefilled_tokens = output.prefilled_tokens
            return
        if output.HasField("timings"):
            self._timings(request, view, output.timings, now_s)
        if output.HasField("kv"):
            self._life.leases.hold(request, Lease(wire.kv_handle_from_wire(output.kv), now_s))
        had = len(request.generated)
        matched = request.take_tokens(output, now_s)
        self.requests.grew(request, len(request.generated) - had)
        if len(request.generated) // REFORECAST_TOKENS != had // REFORECAST_TOKENS:
            self.requests.changed(request)
        self._journal.delivered(request.request_id, len(request.generated))
        if matched:
            if not output.finish_reason:
                self._life.stop_worker(request)
            self._life.finish(request, sampling_pb2.FINISH_REASON_STOP, matched, text_complete=True)
        elif output.finish_reason in (sampling_pb2.FINISH_REASON_ABORT, sampling_pb2.FINISH_REASON_ERROR):
            self._life.restart(request, f"worker {link.worker_id} gave it up")
        elif request.state is RequestState.PREFILLING and output.token_ids:
            self._first_token(request, output, now_s)
        elif output.finish_reason:
            self._life.finish(request, output.finish_reason, _stop_token(output))

    def _first_token(self, request: LiveRequest, output: worker_pb2.RequestOutput, now_s: float) -> None:
        """The prompt is computed: hand the request over, unless it ends here or stays."""
        request.clock.enter(Phase.DECODE if request.placement.local else Phase.HANDOVER, now_s)
        # Room in the plan that came of waiting was for the prompt.
        request.planned = request.guaranteed
        more = len(request.generated) < request.parsed.sampling.max_tokens
        if output.finish_reason == sampling_pb2.FINISH_REASON_LENGTH and more:
            self._start_decode(request, now_s)
        elif output.finish_reason:
            self._life.finish(request, output.finish_reason, _stop_token(output))
        else:
            self._life.enter(request, RequestState.DECODING)

    def _timings(
        self, request: LiveRequest, view: WorkerView, timings: worker_pb2.RequestTimings, now_s: float
    ) -> None:
        """The first output of a request on a worker tells when it began there."""
        began_s = request.submitted_s + timings.wait_s
        request.cached_tokens = max(request.cached_tokens, timings.cached_tokens)
        if request.state is RequestState.PREFILLING:
            self._prefixes.computed(
                view.worker_id,
                request.parsed.prompt,
                view.facts.compatibility.block_tokens,
                view.facts.kv_blocks_total,
                request.believed_cached_tokens,
                timings.cached_tokens,
            )
            if request.restarts == 0:
                request.clock.entered(Phase.PREFILL, began_s, now_s)
            return
        request.clock.entered(Phase.DECODE, began_s, now_s)
        if timings.HasField("kv_pull"):
            request.kv_pull = timings.kv_pull
            self._learn_handover(request, view, timings, now_s)
        if timings.kv_recompute_reason:
            request.kv_recomputes += 1
            self.counters.kv_recomputes += 1
            log.warning(
                "request %s: %s computed the KV cache again: %s",
                request.request_id,
                view.worker_id,
                timings.kv_recompute_reason,
                extra=about(request.request_id, request.trace_id),
            )
            self._life.leases.give_up(request)
        self._life.enter(request, RequestState.DECODING)

    def _learn_handover(
        self, request: LiveRequest, view: WorkerView, timings: worker_pb2.RequestTimings, now_s: float
    ) -> None:
        if now_s - view.learnt_handover_s < LEARN_EVERY_S:
            return
        view.learnt_handover_s = now_s
        others = [other for other in self.requests.decoding(view.worker_id) if other.state is RequestState.DECODING]
        tokens = sum(other.context_tokens for other in others) + request.context_tokens
        self._handovers.observe(
            request.prefill_worker_id,
            view.worker_id,
            timings.kv_pull.bytes,
            timings.kv_pull.transfer_s,
            timings.wait_s,
            view.model.decode_step_s(len(others) + 1, tokens),
            busy=bool(others),
        )

    def _request_failed(self, link: WorkerLink, failure: worker_pb2.RequestFailed) -> None:
        request = self.requests.get(failure.request_id)
        if request is None or request.attempt != failure.attempt or request.worker_id != link.worker_id:
            return
        match failure.kind:
            case worker_pb2.FAILURE_KIND_INVALID:
                self._life.fail(request, InvalidRequestError(failure.detail))
            case worker_pb2.FAILURE_KIND_NOT_ACCEPTING:
                # Not its fault if the worker drains; a worker that is full would be asked again at once, for ever.
                draining = self.cluster.workers[link.worker_id].draining
                self._life.restart(request, f"{link.worker_id} takes nothing: {failure.detail}", counted=not draining)
            case _:
                self._life.restart(request, f"worker {link.worker_id}: {failure.detail}")
        self.pump()


def _stop_token(output: worker_pb2.RequestOutput) -> str:
    return str(output.stop_token_id) if output.HasField("stop_token_id") else ""
