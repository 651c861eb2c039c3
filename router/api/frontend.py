"""The router's own gRPC service: it checks a request, asks for a verdict, and streams the output."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from router.admission.admission_loop import AdmissionLoop
from router.admission.quota_desk import QuotaDesk
from router.admission.undecided import UndecidedRequest
from router.api.call import Call
from router.api.cancelling import Cancelling
from router.api.cluster_state import ClusterReporter, describe_redis_problem
from router.api.parsing import Limits, caller_of, check_call, complete
from router.api.verdict_message import admission_message
from router.api.watchers import Watchers
from router.cluster.cluster_view import ClusterView
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.prompt_queue import PromptQueue
from router.requests.events import RequestEvents
from router.requests.intake import Intake
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.output_coalescer import OutputCoalescer
from router.requests.parsed_request import ParsedRequest
from router.requests.phases import Phase, PhaseClock
from router.requests.scope import scope_of
from services.contract.rate_limits import rate_limit_headers
from services.identity.cache_salts import CacheSalts
from services.identity.principal import Right
from services.model.prompt_threads import PromptThreads, TooManyPromptsError
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.rpc.caller import caller, check_again
from services.rpc.errors import (
    DrainingError,
    DuplicateRequestError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    RequestError,
    abort,
    call_identity,
)
from services.slo.admission import Assessment
from services.slo.attainment import AttainmentMeter
from services.slo.contract import ProfileBook
from services.slo.sessions import SessionBook
from services.state.connection import StateConnection, StateUnavailableError
from services.state.journal import RequestJournal
from services.telemetry.traces import Traces
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)

WORKER_POLL_S = 0.1
MIN_WATCH_INTERVAL_S = 0.1
DEFAULT_WATCH_INTERVAL_S = 1.0


class Frontend(inference_pb2_grpc.InferenceServicer):
    """Serves `Inference` for one router. It holds no requests; those that are admitted are the dispatcher's."""

    def __init__(
        self,
        *,
        router_id: str,
        tokenizer: Tokenizer,
        prompt_threads: PromptThreads,
        profiles: ProfileBook,
        limits: Limits,
        cache_salts: CacheSalts,
        admission_loop: AdmissionLoop,
        quotas: QuotaDesk,
        queue: PromptQueue,
        dispatcher: Dispatcher,
        cluster: ClusterView,
        requests: LiveRequests,
        events: RequestEvents,
        journal: RequestJournal,
        cancelling: Cancelling,
        state: StateConnection,
        coalescer: OutputCoalescer,
        max_message_bytes: int,
        max_queued_requests: int,
        no_worker_patience_s: float,
        reporter: ClusterReporter,
        clock: Callable[[], float],
        traces: Traces,
    ) -> None:
        self.draining = False
        self._router_id = router_id
        self._tokenizer = tokenizer
        self._prompt_threads = prompt_threads
        self._profiles = profiles
        self._limits = limits
        self._cache_salts = cache_salts
        self._admission_loop = admission_loop
        self._quotas = quotas
        self._queue = queue
        self._dispatcher = dispatcher
        self._cluster = cluster
        self._requests = requests
        self._events = events
        self._journal = journal
        self._cancelling = cancelling
        self._state = state
        self._coalescer = coalescer
        self._max_message_bytes = max_message_bytes
        self._max_queued_requests = max_queued_requests
        self._no_worker_patience_s = no_worker_patience_s
        self._clock = clock
        self._traces = traces
        self._reporter = reporter
        self._sessions = SessionBook()
        self._watchers = Watchers()

    async def Generate(  # noqa: N802 - the name is the wire's
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        call = Call.from_context(context, self._traces, self._clock())
        given_id = request.request_id or call.request_id
        try:
            scoped_id = given_id and f"{scope_of(caller())}{given_id}"
            with Intake(self._events, scoped_id, call.trace, call.arrival_s, self._clock) as intake:
                live, assessment = await self._admit(request, call, intake)
        except RequestError as error:
            await abort(context, error, given_id, call.trace.trace_id)
        client_id = live.parsed.client_request_id
        left = self._quotas.standings(live.request_id)
        limits = rate_limit_headers(left).items()
        context.set_trailing_metadata((*call_identity(client_id, live.trace_id), *limits))
        coalescer = self._coalescer
        coalescer.streams += 1
        try:
            yield inference_pb2.GenerateResponse(
                admission=admission_message(
                    assessment, self._cluster, client_id, len(live.parsed.prompt), left, with_workers=_observes()
                )
            )
            while True:
                item = await live.output_buffer.next()
                if isinstance(item, RequestError):
                    await abort(context, item, client_id, live.trace_id)
                yield item
                if item.HasField("finished"):
                    return
                if coalescer.interval_s:
                    await live.output_buffer.gather(coalescer.interval_s)
        finally:
            coalescer.streams -= 1
            # The client may have left, or been cancelled: a request that nobody reads must not keep running.
            self._dispatcher.left(live)

    async def Quote(  # noqa: N802
        self, request: inference_pb2.QuoteRequest, context: Context
    ) -> inference_pb2.QuoteResponse:
        now_s = self._clock()
        try:
            parsed = await self._parse(request.request, Call.from_context(context, self._traces, now_s), quoted=True)
            parsed = replace(parsed, request_id="")
            terms = self._sessions.preview(parsed.contract, now_s, parsed.scope)
            quoted = UndecidedRequest(parsed, terms.contract, now_s, terms.task_due_s)
            assessment = self._admission_loop.assess(quoted, now_s)
        except RequestError as error:
            await abort(context, error, request.request.request_id)
        return inference_pb2.QuoteResponse(
            admission=admission_message(assessment, self._cluster, "", len(parsed.prompt), with_workers=_observes()),
            impossible=assessment.impossible is not None,
        )

    async def Cancel(  # noqa: N802
        self, request: inference_pb2.CancelRequest, context: Context
    ) -> inference_pb2.CancelResponse:
        try:
            await self._cancelling.on_call(request.request_id, context.peer())
        except RequestError as error:
            await abort(context, error, request.request_id)
        return inference_pb2.CancelResponse()

    async def GetClusterState(  # noqa: N802
        self, request: inference_pb2.GetClusterStateRequest, context: Context
    ) -> inference_pb2.GetClusterStateResponse:
        state = self._reporter.message() if _observes() else self._reporter.client_message()
        return inference_pb2.GetClusterStateResponse(state=state)

    async def WatchClusterState(  # noqa: N802
        self, request: inference_pb2.WatchClusterStateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.WatchClusterStateResponse]:
        interval_s = request.interval_s if request.HasField("interval_s") else DEFAULT_WATCH_INTERVAL_S
        if not interval_s >= MIN_WATCH_INTERVAL_S:  # NaN is no interval either
            await abort(context, InvalidRequestError(f"at least {MIN_WATCH_INTERVAL_S} s", field="interval_s"))
        observes = _observes()
        try:
            tenant = caller_of(Call.from_context(context, self._traces, self._clock()).metadata).tenant
            await self._quotas.watch(tenant)
            with self._watchers.place(caller()):
                while True:
                    seen = self._reporter.recent(MIN_WATCH_INTERVAL_S) if observes else self._reporter.client_message()
                    yield inference_pb2.WatchClusterStateResponse(state=seen)
                    await asyncio.sleep(interval_s)
                    await check_again()
                    await self._quotas.watch_on(tenant)
        except RequestError as error:
            await abort(context, error)

    async def _admit(
        self, message: inference_pb2.GenerateRequest, call: Call, intake: Intake
    ) -> tuple[LiveRequest, Assessment]:
        arrival = await self._arrival(message, call)
        intake.understood(arrival.parsed, arrival.planning)
        await self._quotas.admit(arrival.parsed)
        clock = PhaseClock(call.arrival_s)
        admitted: list[LiveRequest] = []

        def take(assessment: Assessment) -> None:
            now_s = self._clock()
            clock.enter(Phase.QUEUE, now_s)
            live = self._live(arrival, assessment, clock)
            admitted.append(live)
            intake.admit(live)
            self._queue.accept(live)

        try:
            await self._workers(call.arrival_s, clock)
            clock.enter(Phase.PLAN, self._clock())
            assessment = await self._admission_loop.decide(arrival, take)
        except BaseException:
            if admitted:
                # The client left in the very moment in which its request was admitted.
                self._dispatcher.left(admitted[0])
            raise
        return admitted[0], assessment

    async def _arrival(self, message: inference_pb2.GenerateRequest, call: Call) -> UndecidedRequest:
        """Check a request and reserve its id.

        Raises:
            RequestError: the request makes no sense, or cannot be taken now.
        """
        if self.draining:
            raise DrainingError("this router is shutting down", retry_after_s=1.0)
        parsed = await self._parse(message, call, quoted=False)
        terms = self._sessions.terms(parsed.contract, call.arrival_s, parsed.scope)
        if terms.contract is not parsed.contract:
            parsed = replace(parsed, contract=terms.contract)
        if not await self._reserve(parsed.request_id, made_here=not (message.request_id or call.request_id)):
            raise DuplicateRequestError(f"{parsed.client_request_id!r} is, or was lately, in use", field="request_id")
        return UndecidedRequest(parsed, terms.contract, call.arrival_s, terms.task_due_s, trace=call.trace)

    async def _parse(self, message: inference_pb2.GenerateRequest, call: Call, *, quoted: bool) -> ParsedRequest:
        """Check a request, and turn its text into token ids beside the event loop if it is long.

        Args:
            quoted: it is only asked about; that is charged here, before anything costly is done.

        Raises:
            RequestError: the request makes no sense, or too many prompts of this client wait.
        """
        if message.ByteSize() > self._max_message_bytes:
            raise InvalidRequestError(f"{message.ByteSize()} bytes; at most {self._max_message_bytes}", field="request")
        checked = check_call(message, call.metadata, self._profiles, self._limits, caller())
        await self._quotas.look(checked.tenant, checked.contract.value, quoted=quoted)
        try:
            token_ids = await self._prompt_threads.run(
                # A proven tenant has its turn, whatever host its calls come from; a claimed one only beside its host.
                checked.scope or f"{call.peer_host} {checked.tenant}",
                checked.input_characters,
                lambda: checked.token_ids(self._tokenizer),
            )
        except TooManyPromptsError:
            raise OverloadedError("too many long prompts wait to be turned into tokens", retry_after_s=1.0) from None
        return complete(checked, token_ids, self._limits, self._cache_salts)

    async def _reserve(self, request_id: str, *, made_here: bool) -> bool:
        if made_here:
            return self._journal.track(request_id, self._router_id)
        try:
            return await self._journal.reserve(request_id, self._router_id)
        except StateUnavailableError:
            # Serving goes on without Redis; ids are then unique on this router only.
            return self._journal.track(request_id, self._router_id)

    async def _workers(self, arrival_s: float, clock: PhaseClock) -> None:
        """Wait until the cluster has workers that can serve a request.

        Raises:
            NoWorkerError: no worker came within `no_worker_patience_s`.
            OverloadedError: too many requests wait already.
        """
        while not self._cluster.ready:
            if self._clock() - arrival_s >= self._no_worker_patience_s:
                problems = (self._cluster.missing(), describe_redis_problem(self._state))
                raise NoWorkerError("; ".join(part for part in problems if part), retry_after_s=1.0)
            if clock.phase is not Phase.QUEUE:
                clock.enter(Phase.QUEUE, self._clock())
            await asyncio.sleep(WORKER_POLL_S)
        waiting = self._requests.queued_count() + self._admission_loop.held
        if waiting >= self._max_queued_requests:
            raise OverloadedError(f"{waiting} requests are waiting already", retry_after_s=1.0)

    def _live(self, arrival: UndecidedRequest, assessment: Assessment, clock: PhaseClock) -> LiveRequest:
        parsed = arrival.parsed
        return LiveRequest(
            parsed=parsed,
            contract=assessment.contract,
            meter=AttainmentMeter(assessment.contract, arrival.arrival_s, arrival.task_due_s),
            clock=clock,
            text=self._tokenizer.stream(skip_special_tokens=parsed.skip_special_tokens),
            stops=StopStrings(parsed.stop, include_match=parsed.include_stop),
            placement=assessment.placement,
            planning=arrival.planning,
            trace=arrival.trace,
            guaranteed=assessment.guaranteed,
        )


def _observes() -> bool:
    """Return whether the caller may be told of workers, routers and their addresses."""
    return caller().may(Right.OBSERVE)
