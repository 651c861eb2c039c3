"""The dispatcher: it takes what happens on the links to workers, and moves requests accordingly.

Everything runs on the event loop in response to one of: a worker connects, reports or is lost, a client cancels, the
timer ticks. Nothing here waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from router.cluster.cluster_view import ClusterView, WorkerView
from router.cluster.links import WorkerLink
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.outputs import Outputs
from router.dispatch.planning import Planning
from router.dispatch.prompt_queue import PromptQueue
from router.requests.events import RequestEvents
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.step_log import logged_step
from services import wire
from services.rpc.errors import InvalidRequestError, NoWorkerError, RequestError
from services.slo.admission import AdmissionCore
from slos_serve.v1 import worker_pb2

log = logging.getLogger(__name__)


class Dispatcher:
    """Moves every admitted request from worker to worker until it ends. Implements `LinkListener`."""

    def __init__(
        self,
        cluster: ClusterView,
        core: AdmissionCore,
        requests: LiveRequests,
        links: dict[str, WorkerLink],
        life: Lifecycle,
        queue: PromptQueue,
        outputs: Outputs,
        planning: Planning,
        events: RequestEvents,
        no_worker_patience_s: float,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            links: the connected workers, by id; only the dispatcher changes it.
            no_worker_patience_s: queued requests fail once there has been no usable worker for so long.
        """
        self._cluster = cluster
        self._core = core
        self._requests = requests
        self._links = links
        self._life = life
        self._queue = queue
        self._outputs = outputs
        self._planning = planning
        self._events = events
        self._no_worker_patience_s = no_worker_patience_s
        self._clock = clock
        self._unusable_since_s: float | None = clock()

    def cancel(self, request_id: str) -> bool:
        """End a request wherever it is. Returns False if no request with this id is running."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._life.cancel(request)
        return True

    def left(self, request: LiveRequest) -> None:
        """End a request whose client has left, unless it has ended already and its id may be somebody else's."""
        if self._requests.get(request.request_id) is request:
            self._life.cancel(request)

    def connected(self, link: WorkerLink, description: wire.WorkerDescription) -> None:
        """Take a worker into the cluster.

        A worker that has started again may be connected before the session to its former process is found broken. The
        new process knows nothing of what the former one was given, so that the former session is lost at once.
        """
        former = self._links.get(link.worker_id)
        if former is not None:
            self.lost(former, "it has started again")
        log.info("worker %s is connected at %s", link.worker_id, link.record.address)
        self._links[link.worker_id] = link
        self._cluster.put(description, link.record.address)
        self.pump()

    def lost(self, link: WorkerLink, why: str) -> None:
        """Start the requests of a lost worker again elsewhere, each from the last token delivered."""
        if self._links.get(link.worker_id) is not link:
            return
        draining = self._cluster.workers[link.worker_id].draining
        log.log(logging.INFO if draining else logging.WARNING, "worker %s is gone: %s", link.worker_id, why)
        if not draining:
            self._events.worker_lost(link.worker_id)
        del self._links[link.worker_id]
        self._cluster.remove(link.worker_id)
        self._life.leases.worker_lost(link.worker_id, self._requests)
        for request in self._requests:
            if request.worker_id == link.worker_id:
                self._life.restart(request, f"worker {link.worker_id} was lost")
        self.pump()

    def event(self, link: WorkerLink, event: worker_pb2.SessionResponse) -> None:
        """Take one message of a worker."""
        view = self._cluster.workers.get(link.worker_id)
        if view is None or self._links.get(link.worker_id) is not link:
            return
        match event.WhichOneof("event"):
            case "step":
                self._take_step(link, view, event.step)
            case "load":
                self._cluster.heard(view, event.load, self._clock())
                self._planning.changed()
            case "request_failed":
                self._take_failure(view, event.request_failed)
            case "lease_closed":
                self._life.leases.closed(event.lease_closed)
            case "aborted":
                self._life.leases.aborted(event.aborted.request_id, event.aborted.attempt)
            case "draining":
                log.info("worker %s drains", link.worker_id)
                self._cluster.drain(link.worker_id)
                self.pump()

    def tick(self) -> None:
        """Do what no event brings: requests that have waited too long for any usable worker fail."""
        now_s = self._clock()
        if self._cluster.ready:
            self._unusable_since_s = None
            self.pump()
            return
        self._unusable_since_s = self._unusable_since_s if self._unusable_since_s is not None else now_s
        if now_s - self._unusable_since_s > self._no_worker_patience_s:
            for request in self._requests.of(self._core.requests.queued()):
                self._life.fail(request, NoWorkerError(self._cluster.missing(), retry_after_s=1.0))

    def pump(self) -> None:
        """Give queued prompts to workers, as far as there is room. Those whose workers are gone are placed again."""
        now_s = self._clock()
        for request in self._requests.of(self._core.requests.queued()):
            self._ensure_placed(request, now_s)
        self._queue.fill_all()
        self._planning.changed()

    def _take_step(self, link: WorkerLink, view: WorkerView, report: worker_pb2.StepReport) -> None:
        """Take the report of one engine step: what it computed, and whom there is room for now."""
        wire.check_outputs(report, view.facts.max_running_requests)
        now_s = self._clock()
        self._cluster.stepped(view, report, now_s)
        step = logged_step(report, self._requests.get, now_s)
        if step is not None:
            self._events.stepped(view.worker_id, step)
        ended = False
        for output in report.outputs:
            self._outputs.take(link, view, output, now_s)
            ended = ended or bool(output.finish_reason)
        self._queue.fill(view.worker_id)
        if ended:
            self.pump()
        else:
            self._planning.changed()

    def _take_failure(self, view: WorkerView, failure: worker_pb2.RequestFailed) -> None:
        """Take a worker's word that it does not serve a request."""
        request = self._outputs.request_at(view.worker_id, failure.request_id, failure.attempt)
        if request is None:
            return
        # The worker has nothing of the request, so that nobody reads its KV cache and no abort will be confirmed.
        self._life.leases.give_up(request)
        match failure.kind:
            case worker_pb2.FAILURE_KIND_INVALID:
                self._life.fail(request, InvalidRequestError(failure.detail))
            case worker_pb2.FAILURE_KIND_NOT_ACCEPTING:
                # A drain is not the request's fault; a worker that is full would be asked again at once, for ever.
                why = f"{view.worker_id} takes nothing: {failure.detail}"
                self._life.restart(request, why, counted=not view.draining)
            case _:
                self._life.restart(request, f"worker {view.worker_id}: {failure.detail}")
        self.pump()

    def _ensure_placed(self, request: LiveRequest, now_s: float) -> None:
        """Place a request again if one of its workers is gone; it stays as it is while there is nowhere to go."""
        if self._cluster.usable(request.placement.prefill_worker_id) and self._cluster.usable(request.decode_worker_id):
            return
        try:
            self._life.move(request, self._planning.place_again(request, now_s))
        except NoWorkerError:
            return
        except RequestError as error:
            self._life.fail(request, error)
