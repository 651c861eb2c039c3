"""The outputs that workers report: tokens go to clients, and a request whose prompt is computed is handed over."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from router.cluster import commands
from router.cluster.cluster_view import ClusterView, WorkerView
from router.cluster.links import WorkerLink
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.planning import Planning
from router.requests.events import RequestEvents
from router.requests.held_lease import HeldLease
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from services import wire
from services.audit import EventKind, Outcome, note
from services.engine.kv.handle import KvHandle
from services.engine.kv.usability import foreign_handle
from services.rpc.errors import RequestError
from services.slo.admission import AdmissionCore
from services.state.journal_entry import RequestState
from services.telemetry.logs import about
from slos_serve.v1 import sampling_pb2, worker_pb2

log = logging.getLogger(__name__)

GIVEN_UP = frozenset({sampling_pb2.FINISH_REASON_ABORT, sampling_pb2.FINISH_REASON_ERROR})
"""Reasons to finish with which an engine gives up a request that the client still wants."""


class Outputs:
    """Takes what a worker reports about one request. Owned by the router's event loop."""

    def __init__(
        self,
        cluster: ClusterView,
        core: AdmissionCore,
        requests: LiveRequests,
        links: Mapping[str, WorkerLink],
        life: Lifecycle,
        planning: Planning,
        events: RequestEvents,
    ) -> None:
        self._cluster = cluster
        self._core = core
        self._requests = requests
        self._links = links
        self._life = life
        self._planning = planning
        self._events = events

    def request_at(self, worker_id: str, request_id: str, attempt: int) -> LiveRequest | None:
        """Return the request that a worker speaks of; None if it is not, or no longer, at work on that attempt."""
        request = self._requests.get(request_id)
        if request is None or request.attempt != attempt or request.worker_id != worker_id:
            return None
        return request

    def take(self, link: WorkerLink, view: WorkerView, output: worker_pb2.RequestOutput, now_s: float) -> None:
        """Take one output of an engine step.

        Raises:
            WireError: the output holds what no conforming worker sends.
        """
        wire.check_output(output, view.facts.vocabulary_size)
        request = self.request_at(view.worker_id, output.request_id, output.attempt)
        if request is None:
            if output.HasField("kv"):
                link.send(commands.release_kv(output.kv.lease_id))
            return
        if output.prefilled_tokens:
            request.advance_prefill(output.prefilled_tokens)
            return
        if output.HasField("timings"):
            self._take_timings(request, view, output.timings, now_s)
        if output.HasField("kv"):
            self._hold(request, link, view, wire.kv_handle_from_wire(output.kv), now_s)
        matched, finish_reason = self._deliver(request, output, now_s), output.finish_reason
        if matched:
            if not finish_reason:
                self._life.stop_worker(request)
            self._life.finish(request, sampling_pb2.FINISH_REASON_STOP, matched, text_complete=True)
        elif finish_reason in GIVEN_UP:
            self._life.restart(request, f"worker {link.worker_id} gave it up")
        elif request.state is RequestState.PREFILLING and output.token_ids:
            self._end_prefill(request, output, now_s)
        elif finish_reason:
            self._life.finish(request, finish_reason, _stop_token(output))

    def _hold(self, request: LiveRequest, link: WorkerLink, view: WorkerView, handle: KvHandle, now_s: float) -> None:
        """Hold the lease on a KV cache for its decode worker, unless the handle would send that worker elsewhere."""
        foreign = foreign_handle(handle, view.worker_id, view.facts.engine_epoch, view.facts.kv_address_json)
        if not foreign:
            self._life.leases.hold(request, HeldLease(handle, now_s))
            return
        log.warning(
            "request %s: the KV handle of worker %s is not used: %s",
            request.request_id,
            view.worker_id,
            foreign,
            extra=about(request.request_id, request.trace_id),
        )
        note(EventKind.LEASE, Outcome.REFUSED, view.worker_id, detail=foreign, trace_id=request.trace_id)
        link.send(commands.release_kv(handle.lease_id))

    def _deliver(self, request: LiveRequest, output: worker_pb2.RequestOutput, now_s: float) -> str:
        """Put tokens into the output buffer. Returns the stop string that ended the text; empty if none did."""
        had = len(request.generated)
        matched = request.take_tokens(output, now_s)
        if request.state is RequestState.DECODING:
            self._core.grew(request.decode_worker_id, len(request.generated) - had)
        self._events.delivered(request)
        return matched

    def _end_prefill(self, request: LiveRequest, output: worker_pb2.RequestOutput, now_s: float) -> None:
        """The first tokens are here: hand the request over, unless it ends with them or stays where it is."""
        request.end_prefill(now_s)
        more = len(request.generated) < request.parsed.sampling.max_tokens
        if output.finish_reason == sampling_pb2.FINISH_REASON_LENGTH and more:
            self._hand_over(request, now_s)
        elif output.finish_reason:
            self._life.finish(request, output.finish_reason, _stop_token(output))
        else:
            self._life.enter(request, RequestState.DECODING)

    def _hand_over(self, request: LiveRequest, now_s: float) -> None:
        """Submit a request to its decode worker. Without a decode worker it goes back to the queue."""
        if not self._cluster.usable(request.decode_worker_id):
            try:
                self._life.move(request, self._planning.place_again(request, now_s))
            except RequestError:
                self._life.restart(request, "no decode worker is there to hand over to", counted=False)
                return
        request.submit_decode(now_s)
        command = commands.submit(request, now_s, self._core.promised_kv_tokens(request), lease=request.lease)
        self._links[request.decode_worker_id].send(command)
        self._life.enter(request, RequestState.HANDOVER)

    def _take_timings(
        self, request: LiveRequest, view: WorkerView, timings: worker_pb2.RequestTimings, now_s: float
    ) -> None:
        """Take what the first output of a request on a worker tells about its beginning there."""
        if request.state is RequestState.PREFILLING:
            self._core.prompt_computed(request, request.believed_cached_tokens, timings.cached_tokens)
            request.begin_prefill(timings.cached_tokens, request.submitted_s + timings.wait_s, now_s)
            return
        request.begin_decode(timings, now_s)
        if timings.HasField("kv_pull"):
            pull = timings.kv_pull
            self._core.handed_over(request, pull.bytes, pull.transfer_s, timings.wait_s, now_s)
        if timings.kv_recompute_reason:
            log.warning(
                "request %s: %s computed the KV cache again: %s",
                request.request_id,
                view.worker_id,
                timings.kv_recompute_reason,
                extra=about(request.request_id, request.trace_id),
            )
            self._events.kv_recomputed(request)
            self._life.leases.give_up(request)
        self._life.enter(request, RequestState.DECODING)


def _stop_token(output: worker_pb2.RequestOutput) -> str:
    return str(output.stop_token_id) if output.HasField("stop_token_id") else ""
