"""The public service: checks a request, has it admitted, and streams what becomes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from router.admission import Admitted, admit
from router.cluster_state import cluster_state
from router.contract_message import contract_message
from router.dispatch import Dispatcher
from router.links import WorkerLinks
from router.live_request import LiveRequest
from router.parsing import REQUEST_ID, Limits, ParsedRequest, parse
from router.phases import Phase, PhaseClock
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.rpc.errors import (
    DrainingError,
    DuplicateRequestError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    RequestError,
    UnknownRequestError,
    abort,
)
from services.slo.attainment import AttainmentMeter
from services.slo.contract import ProfileBook
from services.state.connection import StateConnection, StateUnavailableError
from services.state.journal import RequestJournal, RequestState
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)

WORKER_POLL_S = 0.1
MIN_WATCH_INTERVAL_S = 0.1
DEFAULT_WATCH_INTERVAL_S = 1.0


class Frontend(inference_pb2_grpc.InferenceServicer):
    """One router's `Inference` service. Holds no request itself: the dispatcher does."""

    def __init__(
        self,
        *,
        router_id: str,
        tokenizer: Tokenizer,
        profiles: ProfileBook,
        limits: Limits,
        dispatcher: Dispatcher,
        links: WorkerLinks,
        journal: RequestJournal,
        state: StateConnection,
        max_message_bytes: int,
        max_queued_requests: int,
        no_worker_patience_s: float,
        best_effort_patience_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.draining = False
        self._router_id = router_id
        self._tokenizer = tokenizer
        self._profiles = profiles
        self._limits = limits
        self._dispatcher = dispatcher
        self._links = links
        self._journal = journal
        self._state = state
        self._max_message_bytes = max_message_bytes
        self._max_queued_requests = max_queued_requests
        self._no_worker_patience_s = no_worker_patience_s
        self._best_effort_patience_s = best_effort_patience_s
        self._clock = clock
        self._started_s = clock()

    async def Generate(  # noqa: N802 - the name is the wire's
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self._dispatcher.counters.received += 1
        try:
            live = await self._admit(request, context)
        except RequestError as error:
            self._dispatcher.counters.refused += 1
            await abort(context, error, request.request_id)
        try:
            yield self._admission_message(live)
            while True:
                item = await live.outbox.get()
                if isinstance(item, RequestError):
                    await abort(context, item, live.request_id)
                yield item
                if item.HasField("finished"):
                    return
        finally:
            # The client may be gone, or have been cancelled: nothing may go on for nobody.
            self._dispatcher.cancel(live.request_id)

    async def Cancel(  # noqa: N802
        self, request: inference_pb2.CancelRequest, context: Context
    ) -> inference_pb2.CancelResponse:
        if not REQUEST_ID.fullmatch(request.request_id):
            await abort(context, InvalidRequestError("is no request id", field="request_id"))
        if not self._dispatcher.cancel(request.request_id):
            error = UnknownRequestError("no request with this id is running on this router", field="request_id")
            await abort(context, error, request.request_id)
        return inference_pb2.CancelResponse()

    async def GetClusterState(  # noqa: N802
        self, request: inference_pb2.GetClusterStateRequest, context: Context
    ) -> inference_pb2.GetClusterStateResponse:
        return inference_pb2.GetClusterStateResponse(state=self._cluster_state())

    async def WatchClusterState(  # noqa: N802
        self, request: inference_pb2.WatchClusterStateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.WatchClusterStateResponse]:
        interval_s = request.interval_s if request.HasField("interval_s") else DEFAULT_WATCH_INTERVAL_S
        if not interval_s >= MIN_WATCH_INTERVAL_S:  # NaN is no interval either
            await abort(context, InvalidRequestError(f"at least {MIN_WATCH_INTERVAL_S} s", field="interval_s"))
        while True:
            yield inference_pb2.WatchClusterStateResponse(state=self._cluster_state())
            await asyncio.sleep(interval_s)

    async def _admit(self, message: inference_pb2.GenerateRequest, context: Context) -> LiveRequest:
        arrival_s = self._clock()
        if self.draining:
            raise DrainingError("this router is shutting down", retry_after_s=1.0)
        if message.ByteSize() > self._max_message_bytes:
            raise InvalidRequestError(f"{message.ByteSize()} bytes; at most {self._max_message_bytes}", field="request")
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        parsed = parse(message, metadata, self._tokenizer, self._profiles, self._limits)
        if not await self._reserve(parsed.request_id):
            raise DuplicateRequestError(f"{parsed.request_id!r} is, or was lately, in use", field="request_id")
        try:
            clock = PhaseClock(arrival_s)
            admitted = await self._decide(parsed, arrival_s, clock)
        except BaseException:
            self._journal.abandon(parsed.request_id)
            raise
        live = self._live(parsed, admitted, arrival_s, clock)
        self._dispatcher.counters.admit(live)
        self._dispatcher.accept(live)
        return live

    async def _reserve(self, request_id: str) -> bool:
        try:
            return await self._journal.reserve(request_id, self._router_id)
        except StateUnavailableError:
            # Serving goes on without Redis; ids are then unique on this router only.
            return self._journal.track(request_id, self._router_id)

    async def _decide(self, parsed: ParsedRequest, arrival_s: float, clock: PhaseClock) -> Admitted:
        """Admission, after a wait for workers if there are none."""
        dispatcher = self._dispatcher
        while not dispatcher.cluster.groups():
            if self._clock() - arrival_s >= self._no_worker_patience_s:
                redis = self._redis_problem()
                detail = "; ".join(part for part in (dispatcher.cluster.missing(), redis) if part)
                raise NoWorkerError(detail, retry_after_s=1.0)
            if clock.phase is not Phase.QUEUE:
                clock.enter(Phase.QUEUE, self._clock())
            await asyncio.sleep(WORKER_POLL_S)
        queued = sum(other.state is RequestState.QUEUED for other in dispatcher.requests.values())
        if queued >= self._max_queued_requests:
            raise OverloadedError(f"{queued} requests are waiting already", retry_after_s=1.0)
        now_s = self._clock()
        clock.enter(Phase.PLAN, now_s)
        admitted = admit(
            parsed,
            dispatcher.cluster,
            dispatcher.requests.values(),
            arrival_s,
            now_s,
            self._best_effort_patience_s,
        )
        clock.enter(Phase.QUEUE, self._clock())
        return admitted

    def _live(self, parsed: ParsedRequest, admitted: Admitted, arrival_s: float, clock: PhaseClock) -> LiveRequest:
        return LiveRequest(
            parsed=parsed,
            contract=admitted.contract,
            meter=AttainmentMeter(admitted.contract, arrival_s),
            clock=clock,
            text=self._tokenizer.stream(skip_special_tokens=parsed.skip_special_tokens),
            stops=StopStrings(parsed.stop, include_match=parsed.include_stop),
            placement=admitted.placement,
            decode_worker_id=admitted.placement.decode_worker_id,
            guaranteed=admitted.placement.guaranteed,
            due_s=admitted.placement.due_s,
        )

    def _admission_message(self, live: LiveRequest) -> inference_pb2.GenerateResponse:
        placement = live.placement
        worker = self._dispatcher.cluster.workers.get(placement.decode_worker_id)
        return inference_pb2.GenerateResponse(
            admission=inference_pb2.Admission(
                request_id=live.request_id,
                verdict=inference_pb2.VERDICT_GUARANTEED if live.guaranteed else inference_pb2.VERDICT_BEST_EFFORT,
                predicted=inference_pb2.Prediction(
                    ttft_s=placement.predicted_ttft_s, tpot_s=placement.predicted_tpot_s
                ),
                contract=contract_message(live.contract),
                model=self._limits.model_name,
                prompt_tokens=len(live.parsed.prompt),
                prefill_worker_id=placement.prefill_worker_id,
                decode_worker_id=placement.decode_worker_id,
                reason=placement.binding,
                emulated=worker is not None and worker.facts.emulated,
            )
        )

    def _redis_problem(self) -> str:
        return "" if self._state.connected else f"Redis at {self._state.url} is unreachable"

    def _cluster_state(self) -> inference_pb2.ClusterState:
        return cluster_state(
            self._router_id,
            self._clock() - self._started_s,
            self._dispatcher.cluster,
            self._links.registered,
            self._dispatcher.requests.values(),
            self._dispatcher.counters,
            self._redis_problem(),
        )
