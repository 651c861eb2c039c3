"""The router's own code in virtual time: simulated engines behind links that only record, and timers of the simulator.

Admission loop, dispatcher, prompt queue, outputs and life cycle are the ones that ship; what engines do comes to them
as the messages that a worker would send.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from router.admission.admission_loop import AdmissionLoop
from router.admission.undecided import UndecidedRequest
from router.cluster.cluster_view import ClusterView
from router.cluster.links import WorkerLink
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.lifecycle import Lifecycle
from router.dispatch.outputs import Outputs
from router.dispatch.prompt_queue import PromptQueue
from router.requests.events import RequestEvents
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.parsed_request import ParsedRequest
from router.requests.phases import Phase, PhaseClock
from services import wire
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle
from services.engine.protocol import EngineFacts, EngineLoad, SamplingOptions
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.admission import Assessment
from services.slo.admission.recording import Event, RecordingCore
from services.slo.attainment import AttainmentMeter
from services.slo.performance import StepShape
from services.state.journal_entry import RequestState
from services.state.registry import WorkerRecord, WorkerRole
from simulator.cluster import PolicyContext
from simulator.engine import Engine
from simulator.events import Events
from simulator.knowledge import prior_of
from simulator.policies.admitted import MOST_OUTPUT_TOKENS, arrival_of
from simulator.policies.base import BasePolicy, Source, worker_name
from simulator.policies.choices import Choices, Roles
from simulator.policies.composed_steps import ComposedSteps
from simulator.policies.promising import TICK_S
from simulator.request import SimRequest
from slos_serve.v1 import inference_pb2, sampling_pb2, worker_pb2

COMPATIBILITY = Compatibility("m", "bf16", "bf16", 16, 1, "HND", "simulated")


class _Timer:
    """A call that comes later, unless it is cancelled."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        if self._callback is not None:
            self._callback()


class _VirtualLoop:
    """What the admission loop needs of an event loop, on the simulator's clock."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._loop = asyncio.new_event_loop()

    def create_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(callback)
        self._events.at(self._events.now_s + delay_s, timer.fire)
        return timer

    def close(self) -> None:
        self._loop.close()


class RouterPolicy(BasePolicy):
    """A simulator's policy that is the router."""

    def __init__(self, context: PolicyContext, choices: Choices, model_dir: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(context)
        self.told: list[Event] = []
        self.loop = _VirtualLoop(context.events)
        patch.setattr(asyncio, "get_running_loop", lambda: self.loop)
        machine = context.machine
        self.core = RecordingCore(
            self.told.append, choices.admission_options(machine), link=machine.link, seed=context.seed
        )
        self._tokenizer = Tokenizer(model_dir)
        self._cluster, self._live = ClusterView("m", self.core), LiveRequests()
        self._links: dict[str, WorkerLink] = {}
        events = RequestEvents()

        def clock() -> float:
            return self.events.now_s

        life = Lifecycle(self._cluster, self.core, self._live, self._links, 3, clock, events)
        self._queue = PromptQueue(self.core, self._live, self._links, life, clock)
        self._rounds = AdmissionLoop(self.core, self._cluster, self._live, self._queue.give_room, clock, events)
        outputs = Outputs(self._cluster, self.core, self._live, self._links, life, self._rounds, events)
        self._dispatcher = Dispatcher(
            self._cluster,
            self.core,
            self._live,
            self._links,
            life,
            self._queue,
            outputs,
            self._rounds,
            events,
            10.0,
            clock,
        )
        self._requests: dict[str, SimRequest] = {}
        self._waiting: list[Coroutine[Any, Any, Assessment]] = []
        self._steps: dict[str, ComposedSteps] = {}
        self._shapes: dict[str, tuple[StepShape, float]] = {}
        self._handed_over: dict[str, tuple[float, int]] = {}
        """KV caches that have moved, by request: seconds of the transfer, and bytes."""
        self._cached: dict[str, int] = {}
        self._ticking = False
        engines = []
        for index in range(context.workers):
            engine = self._engine(index, choices)
            engines.append(engine)
        self.engines = engines
        self._by_id = {engine.worker_id: engine for engine in engines}

    def _engine(self, index: int, choices: Choices) -> Engine:
        machine, name = self.machine, worker_name(index)
        steps = ComposedSteps(lambda: self.core.cluster.workers[name].bound, choices.policy, self._stepped)
        self._steps[name] = steps
        engine = self.engine(index, steps, reserves_output=False)
        prefills_only = choices.roles is not Roles.COLOCATED and index < choices.prefills
        role = WorkerRole.PREFILL if prefills_only else WorkerRole.DECODE
        facts = EngineFacts(
            engine_epoch="1",
            compatibility=COMPATIBILITY,
            model="m",
            max_context_tokens=1 << 20,
            vocabulary_size=1 << 20,
            eos_token_ids=(),
            kv_blocks_total=machine.kv_blocks,
            kv_bytes_per_token=machine.kv_bytes_per_token,
            max_step_tokens=machine.limits.max_step_tokens,
            max_running_requests=machine.limits.max_running_requests,
            kv_lease_s=1e9,
            performance=prior_of(machine, choices.knowledge),
            emulated=True,
            kv_address_json="{}",
        )
        link = WorkerLink(WorkerRecord(name, role, f"{name}:1", "1", {}, "m", True))
        load = EngineLoad(0, 0, machine.kv_blocks, 0, 0)
        self._dispatcher.connected(link, wire.WorkerDescription(name, role, facts, load, draining=False))
        return engine

    # Clients.

    def arrive(self, request: SimRequest) -> None:
        arrival = arrival_of(request, length_known=False)
        number = len(self._requests)
        self._requests[request.request_id] = request
        parsed = ParsedRequest(
            request_id=request.request_id,
            prompt=tuple(range(number, number + request.offered.prompt_tokens)),
            sampling=SamplingOptions(MOST_OUTPUT_TOKENS),
            stop=(),
            include_stop=False,
            skip_special_tokens=True,
            contract=arrival.contract,
            application=arrival.facts.application,
            tenant=request.offered.tenant,
        )
        undecided = UndecidedRequest(parsed, arrival.contract, request.arrival_s)
        waiting = self._rounds.decide(undecided, lambda answer: self._take(undecided, answer))
        self._waiting.append(waiting)
        waiting.send(None)

    def _take(self, undecided: UndecidedRequest, answer: Assessment) -> None:
        clock = PhaseClock(undecided.arrival_s)
        clock.enter(Phase.QUEUE, self.events.now_s)
        self._requests[undecided.parsed.request_id].guaranteed = answer.guaranteed
        live = LiveRequest(
            parsed=undecided.parsed,
            contract=answer.contract,
            meter=AttainmentMeter(answer.contract, undecided.arrival_s),
            clock=clock,
            text=self._tokenizer.stream(skip_special_tokens=True),
            stops=StopStrings(()),
            placement=answer.placement,
            planning=undecided.planning,
            guaranteed=answer.guaranteed,
        )
        self._queue.accept(live)
        self._obey()
        self._tick_later()

    def _tick_later(self) -> None:
        if not self._ticking and self.core.requests.queued_count():
            self._ticking = True
            self.events.at(self.events.now_s + TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._dispatcher.tick()
        self._rounds.tick()
        self._obey()
        self._tick_later()

    # Commands to workers.

    def _obey(self) -> None:
        """Carry out what the router has sent to its workers."""
        for worker_id, link in self._links.items():
            while link.commands.qsize():
                command = link.commands.get_nowait()
                if command.WhichOneof("command") == "submit":
                    self._submit(worker_id, command.submit)

    def _submit(self, worker_id: str, submit: worker_pb2.Submit) -> None:
        request, engine = self._requests[submit.request_id], self._by_id[worker_id]
        live = self._live.get(request.request_id)
        assert live is not None
        work, now_s = request.work, self.events.now_s
        pulls = submit.HasField("kv_source")
        request.export = submit.export_kv
        work.best_effort = submit.best_effort
        assert work.best_effort is not live.planned
        lost = work.best_effort and request.missed
        first = not request.generated and live.planned
        work.due_s = math.inf if lost else min(request.due_s, live.rank_s) if first else request.due_s
        work.tpot_s = math.inf if lost or request.export else request.tpot_s
        told_s = submit.deadline_in_s if submit.HasField("deadline_in_s") else math.inf
        assert told_s == pytest.approx(work.due_s - now_s, abs=1e-6), "the worker is told when the next token is due"
        if live.planned:
            self._steps[worker_id].note(work.tpot_s, now_s)
        if not pulls:
            self._cached[request.request_id] = engine.prefixes.peek(request.offered)
        engine.submit(request, pulls=pulls)

    # What workers report.

    def _stepped(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        self._shapes[engine.worker_id] = shape, seconds

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        """Nothing: reported with its step."""

    def first_token(self, engine: Engine, request: SimRequest) -> None:
        """Keep the KV cache for whoever the router sends for it."""
        blocks, tokens = request.work.held_blocks, request.context_tokens - 1
        self._sources[request.request_id] = Source(engine, blocks, tokens, self.events.now_s)

    def handed_over(self, source: Source, engine: Engine, request: SimRequest, transfer_s: float) -> None:
        self._handed_over[request.request_id] = transfer_s, source.tokens * self.machine.kv_bytes_per_token

    def step_ended(self, engine: Engine) -> None:
        """Report the step as a worker does: one message with what it brought to every request."""
        shape, seconds = self._shapes.pop(engine.worker_id)
        outputs = [
            output
            for request, work, _ in engine._served
            if (output := self._output(engine, request, work.computed_tokens)) is not None
        ]
        load = worker_pb2.WorkerLoad(
            running_requests=len(engine.requests),
            kv_blocks_total=self.machine.kv_blocks,
            kv_blocks_leased=engine.leased_blocks,
        )
        report = worker_pb2.StepReport(duration_s=seconds, shape=wire.shape_to_wire(shape), outputs=outputs, load=load)
        link = self._links[engine.worker_id]
        self._dispatcher.event(link, worker_pb2.SessionResponse(step=report))
        self._obey()

    def _output(self, engine: Engine, request: SimRequest, computed_tokens: int) -> worker_pb2.RequestOutput | None:
        live = self._live.get(request.request_id)
        assert live is not None
        output = worker_pb2.RequestOutput(request_id=request.request_id, attempt=live.attempt)
        tokens = request.generated - len(live.generated)
        if not tokens:
            if live.state is not RequestState.PREFILLING:
                return None
            output.prefilled_tokens = computed_tokens
            return output
        output.token_ids.extend([7] * tokens)
        if live.state is RequestState.PREFILLING:
            output.timings.cached_tokens = self._cached[request.request_id]
        elif live.state is RequestState.HANDOVER:
            transfer_s, kv_bytes = self._handed_over.pop(request.request_id)
            output.timings.wait_s = engine.step_began_s - live.submitted_s
            output.timings.kv_pull.CopyFrom(inference_pb2.KvPull(bytes=kv_bytes, transfer_s=transfer_s))
        if request.ended:
            output.finish_reason = sampling_pb2.FINISH_REASON_STOP
        elif request.export:
            output.finish_reason = sampling_pb2.FINISH_REASON_LENGTH
            output.kv.CopyFrom(wire.kv_handle_to_wire(_handle(engine.worker_id, request)))
        return output

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        raise NotImplementedError("workers of this policy do not fail")

    def close(self) -> None:
        """Let go of the clients that were answered, and of those who were refused."""
        for waiting in self._waiting:
            waiting.close()
        self.loop.close()


def _handle(worker_id: str, request: SimRequest) -> KvHandle:
    return KvHandle(
        lease_id=f"{request.request_id}@{worker_id}",
        worker_id=worker_id,
        engine_epoch="1",
        lease_remaining_s=1e9,
        tokens=request.context_tokens - 1,
        kv_bytes=0,
        compatibility=COMPATIBILITY,
        transfer_params_json="{}",
        secret="secret",
    )
