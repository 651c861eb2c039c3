"""A dispatcher without processes: links only record, a test sets the clock and answers for the planner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from router.cluster.cluster_view import ClusterView
from router.cluster.links import WorkerLink
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.outputs import Outputs
from router.dispatch.prompt_queue import PromptQueue
from router.observability.counters import Counters
from router.observability.history import History
from router.requests.events import RequestEvents, RequestObserver
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.phases import Phase, PhaseClock
from router.requests.request_record import RequestRecord
from services import wire
from services.engine.kv.handle import KvHandle
from services.engine.protocol import EngineFacts, EngineLoad
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.rpc.errors import NoWorkerError, RequestError
from services.slo.admission import AdmissionCore
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract
from services.slo.latency_forecast import Forecast, Placement
from services.state.journal_entry import RequestState
from services.state.registry import WorkerRecord, WorkerRole
from slos_serve.v1 import inference_pb2, sampling_pb2, worker_pb2
from tests.unit.router.router_support import FACTS, contract, parsed

START_S = 1000.0
MAX_RESTARTS = 2
PATIENCE_S = 5.0
STOP, LENGTH = sampling_pb2.FINISH_REASON_STOP, sampling_pb2.FINISH_REASON_LENGTH
GOES_ON = sampling_pb2.FINISH_REASON_UNSPECIFIED
LETTER_A = 81
"""The token of the tiny model for `a`; those of the other letters follow."""


def placement(prefill: str = "p1", decode: str = "d1", due_s: float = START_S + 1.0) -> Placement:
    return Placement(prefill, decode, due_s, Forecast(0.1, 0.2), Forecast(0.05, 0.1))


@dataclass(slots=True)
class FakePlanning:
    """Answers what a test tells it to, and remembers what it was told."""

    answer: Placement | RequestError = field(default_factory=lambda: NoWorkerError("nowhere", retry_after_s=1.0))
    asked: list[str] = field(default_factory=list)
    changes: int = 0

    def place_again(self, request: LiveRequest, now_s: float) -> Placement:
        self.asked.append(request.request_id)
        if isinstance(self.answer, RequestError):
            raise self.answer
        return self.answer

    def changed(self) -> None:
        self.changes += 1


@dataclass(slots=True)
class Account(RequestObserver):
    """Every event that an observer was told, in order."""

    states: list[tuple[str, RequestState, int]] = field(default_factory=list)
    ended: list[RequestRecord] = field(default_factory=list)
    errors: list[RequestError | None] = field(default_factory=list)
    delivered: Counter[str] = field(default_factory=Counter)

    def on_entered(self, request: LiveRequest) -> None:
        self.states.append((request.request_id, request.state, request.attempt))

    def on_delivered(self, request: LiveRequest) -> None:
        self.delivered[request.request_id] = len(request.generated)

    def on_ended(self, request: LiveRequest, record: RequestRecord, error: RequestError | None) -> None:
        self.ended.append(record)
        self.errors.append(error)

    def states_of(self, request: LiveRequest) -> list[RequestState]:
        return [state for request_id, state, _ in self.states if request_id == request.request_id]


class DispatchBench:
    """The parts of `router/dispatch`, with a planner and links that are not real. Time stands still."""

    def __init__(self, model_dir: Path) -> None:
        self.now_s = START_S
        self.core = AdmissionCore()
        self.cluster, self.requests = ClusterView("m", self.core), LiveRequests()
        self.handovers, self.prefixes = self.core.handovers, self.core.prefixes
        self.planning, self.counters, self.history, self.account = FakePlanning(), Counters(), History(), Account()
        self.links: dict[str, WorkerLink] = {}
        events = RequestEvents(self.counters, self.history, self.account)

        def clock() -> float:
            return self.now_s

        self.life = Lifecycle(self.cluster, self.core, self.requests, self.links, MAX_RESTARTS, clock, events)
        self.queue = PromptQueue(self.core, self.requests, self.links, self.life, clock)
        outputs = Outputs(self.cluster, self.core, self.requests, self.links, self.life, self.planning, events)
        self.dispatcher = Dispatcher(
            self.cluster,
            self.core,
            self.requests,
            self.links,
            self.life,
            self.queue,
            outputs,
            self.planning,
            events,
            PATIENCE_S,
            clock,
        )
        self._events = events
        self._tokenizer = Tokenizer(model_dir)
        self._sessions: dict[str, WorkerLink] = {}

    # Workers.

    def connect(self, worker_id: str, facts: EngineFacts = FACTS) -> WorkerLink:
        role = WorkerRole.PREFILL if worker_id.startswith("p") else WorkerRole.DECODE
        link = WorkerLink(WorkerRecord(worker_id, role, f"{worker_id}:1", facts.engine_epoch, {}, "m", True))
        load = EngineLoad(0, 0, facts.kv_blocks_total, 0, 0)
        self._sessions[worker_id] = link
        self.dispatcher.connected(link, wire.WorkerDescription(worker_id, role, facts, load, draining=False))
        return link

    def lose(self, worker_id: str) -> None:
        self.dispatcher.lost(self._sessions[worker_id], "killed")

    def sent(self, worker_id: str) -> list[worker_pb2.SessionRequest]:
        """Return the commands sent to a worker since the last call, even after it was lost."""
        commands = self._sessions[worker_id].commands
        return [commands.get_nowait() for _ in range(commands.qsize())]

    def kinds(self, worker_id: str) -> list[str]:
        """Return the kinds of the commands sent to a worker since the last call."""
        return [command.WhichOneof("command") or "" for command in self.sent(worker_id)]

    def tell(self, worker_id: str, event: worker_pb2.SessionResponse) -> None:
        self.dispatcher.event(self._sessions[worker_id], event)

    def step(self, worker_id: str, *outputs: worker_pb2.RequestOutput, running: int = 1) -> None:
        """A worker reports a step of 20 ms."""
        load = worker_pb2.WorkerLoad(running_requests=running, kv_blocks_total=FACTS.kv_blocks_total)
        report = worker_pb2.StepReport(duration_s=0.02, outputs=outputs, load=load)
        self.tell(worker_id, worker_pb2.SessionResponse(step=report))

    def fail(self, worker_id: str, request: LiveRequest, kind: worker_pb2.FailureKind.ValueType) -> None:
        """A worker says that it does not serve the attempt under way."""
        failed = worker_pb2.RequestFailed(
            request_id=request.request_id, attempt=request.attempt, kind=kind, detail="because"
        )
        self.tell(worker_id, worker_pb2.SessionResponse(request_failed=failed))

    def close_lease(self, worker_id: str, lease_id: str, outcome: worker_pb2.LeaseOutcome.ValueType) -> None:
        closed = worker_pb2.LeaseClosed(lease_id=lease_id, outcome=outcome)
        self.tell(worker_id, worker_pb2.SessionResponse(lease_closed=closed))

    def confirm_abort(self, worker_id: str, request_id: str, attempt: int) -> None:
        aborted = worker_pb2.Aborted(request_id=request_id, attempt=attempt)
        self.tell(worker_id, worker_pb2.SessionResponse(aborted=aborted))

    # Requests.

    def request(
        self,
        request_id: str = "r",
        prompt_tokens: int = 100,
        *,
        where: Placement | None = None,
        wanted: Contract | None = None,
        guaranteed: bool = True,
        max_tokens: int = 50,
        stop: tuple[str, ...] = (),
    ) -> LiveRequest:
        """Return an admitted request that was not accepted yet; it arrived a tenth of a second ago."""
        wanted = contract(ttft_s=1.0, tpot_s=0.1) if wanted is None else wanted
        asked = replace(parsed(request_id, prompt_tokens, wanted, max_tokens), stop=stop)
        clock = PhaseClock(self.now_s - 0.1)
        clock.enter(Phase.QUEUE, self.now_s)
        return LiveRequest(
            parsed=asked,
            contract=wanted,
            meter=AttainmentMeter(wanted, self.now_s - 0.1),
            clock=clock,
            text=self._tokenizer.stream(skip_special_tokens=True),
            stops=StopStrings(stop),
            placement=placement(due_s=self.now_s + 1.0) if where is None else where,
            guaranteed=guaranteed,
        )

    def accept(self, request: LiveRequest) -> LiveRequest:
        """Take an admitted request in, as the front end does."""
        self._events.received()
        self._events.admitted(request)
        self.queue.accept(request)
        return request

    def handed_over(self, request: LiveRequest) -> LiveRequest:
        """Accept a request and let `p1` compute its prompt, so that it waits for `d1` to pull its KV cache."""
        self.accept(request)
        self.step("p1", self.first_output(request))
        assert request.state is RequestState.HANDOVER
        return request

    def decoding(self, request: LiveRequest) -> LiveRequest:
        """Accept a request and bring it to where `d1` decodes it; nothing that was sent until then is kept."""
        self.handed_over(request)
        self.step("d1", output(request, 71, timings=timings(kv_bytes=100_000)))
        assert request.state is RequestState.DECODING
        self.sent("p1")
        self.sent("d1")
        return request

    def first_output(self, request: LiveRequest, token_id: int = 70) -> worker_pb2.RequestOutput:
        """Return what a prefill worker reports at the end of a prompt whose KV cache it exports."""
        return output(request, token_id, finish=LENGTH, kv=kv_handle(request), timings=timings())


def output(
    request: LiveRequest,
    *token_ids: int,
    finish: sampling_pb2.FinishReason.ValueType = GOES_ON,
    kv: worker_pb2.KvHandle | None = None,
    timings: worker_pb2.RequestTimings | None = None,
    attempt: int | None = None,
    stop_token_id: int | None = None,
) -> worker_pb2.RequestOutput:
    """Return an output of the attempt under way, or of another."""
    return worker_pb2.RequestOutput(
        request_id=request.request_id,
        attempt=request.attempt if attempt is None else attempt,
        token_ids=token_ids,
        finish_reason=finish,
        kv=kv,
        timings=timings,
        stop_token_id=stop_token_id,
    )


def timings(
    *, wait_s: float = 0.01, cached_tokens: int = 0, kv_bytes: int = 0, recomputed: str = ""
) -> worker_pb2.RequestTimings:
    """Return what a worker tells of the beginning of a request; `kv_bytes` make it a pull of 5 ms."""
    return worker_pb2.RequestTimings(
        wait_s=wait_s,
        run_s=0.01,
        cached_tokens=cached_tokens,
        kv_pull=inference_pb2.KvPull(bytes=kv_bytes, transfer_s=0.005) if kv_bytes else None,
        kv_recompute_reason=recomputed,
    )


def kv_handle(request: LiveRequest, worker_id: str = "p1") -> worker_pb2.KvHandle:
    """Return the handle of an exported KV cache; its lease lasts 30 s and carries the number of the attempt."""
    handle = KvHandle(
        lease_id=f"{request.request_id}-{request.attempt}",
        worker_id=worker_id,
        engine_epoch="1",
        lease_remaining_s=30.0,
        tokens=request.context_tokens,
        kv_bytes=1000 * request.context_tokens,
        compatibility=FACTS.compatibility,
        transfer_params_json="{}",
        secret="canary",
    )
    return wire.kv_handle_to_wire(handle)


async def read(request: LiveRequest) -> tuple[inference_pb2.TokenChunk, inference_pb2.Finished | RequestError]:
    """Return all tokens that wait for the client of a request that has ended, and the last message."""
    chunk, last = inference_pb2.TokenChunk(), await request.output_buffer.next()
    if isinstance(last, inference_pb2.GenerateResponse) and last.HasField("tokens"):
        chunk, last = last.tokens, await request.output_buffer.next()
    return chunk, last if isinstance(last, RequestError) else last.finished
