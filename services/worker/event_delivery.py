"""Delivery of an engine's events to the router sessions that they concern."""

from __future__ import annotations

from collections.abc import Callable

from services.engine.protocol import EngineEvent, EngineStep, LeaseClosed, RequestRejected
from services.wire import lease_outcome_to_wire, output_to_wire, step_to_wire
from services.worker.engine_commands import EngineCommands
from services.worker.ledger import LedgerEntry, RequestLedger
from services.worker.load_reports import LoadReports
from services.worker.observer import WorkerObserver
from services.worker.policy import RolePolicy
from services.worker.router_commitments import RouterCommitments
from services.worker.sessions import RouterSession, SessionBook
from slos_serve.v1 import worker_pb2

FAILURE_NAMES = {
    worker_pb2.FAILURE_KIND_NOT_ACCEPTING: "not_accepting",
    worker_pb2.FAILURE_KIND_INVALID: "invalid",
    worker_pb2.FAILURE_KIND_ENGINE: "engine",
}
"""Values of the label `kind` of the metric that counts refused requests."""


class EventDelivery:
    """Turns each engine event into messages for sessions, and keeps the worker's books about it.

    Instances belong to one event loop. An event of a request or a lease that nobody owns any more changes the books and
    reaches no session.
    """

    def __init__(
        self,
        ledger: RequestLedger,
        sessions: SessionBook,
        policy: RolePolicy,
        commands: EngineCommands,
        commitments: RouterCommitments,
        reports: LoadReports,
        observer: WorkerObserver,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._sessions = sessions
        self._policy = policy
        self._commands = commands
        self._commitments = commitments
        self._reports = reports
        self._observer = observer
        self._clock = clock

    def deliver(self, event: EngineEvent) -> None:
        """Deliver one event. Events must come in the order in which the engine yields them."""
        match event:
            case EngineStep():
                self._step(event)
            case RequestRejected():
                self.rejected(event)
            case LeaseClosed():
                self._lease_closed(event)

    def rejected(self, event: RequestRejected) -> None:
        """Tell a router that the engine did not take its request."""
        entry = self._ledger.find(event.request_id)
        if entry is None:
            return
        self._let_go(event.request_id, entry)
        self._observer.rejected(entry, event.detail, self._clock())
        self._policy.finished(event.request_id)
        session = self._sessions.find(entry.owner)
        if entry.aborting:
            self._aborted(entry)
        elif session is not None:
            kind = worker_pb2.FAILURE_KIND_INVALID if event.invalid else worker_pb2.FAILURE_KIND_ENGINE
            self.fail(session, entry.request_id, entry.attempt, kind, event.detail)

    def fail(
        self, session: RouterSession, request_id: str, attempt: int, kind: worker_pb2.FailureKind.ValueType, detail: str
    ) -> None:
        """Tell a router that an attempt at its request failed on this worker."""
        self._observer.refused(FAILURE_NAMES[kind])
        failed = worker_pb2.RequestFailed(request_id=request_id, attempt=attempt, kind=kind, detail=detail)
        self._sessions.send(session, worker_pb2.SessionResponse(request_failed=failed))

    def _step(self, step: EngineStep) -> None:
        now_s = self._clock()
        self._observer.step(step)
        outputs: dict[str, list[worker_pb2.RequestOutput]] = {}
        aborted: list[LedgerEntry] = []
        for output in map(self._policy.annotate, step.outputs):
            entry = self._ledger.find(output.request_id)
            done = output.finish_reason is not None
            if entry is not None:
                self._commitments.advance(entry.owner, entry.request_id, entry.attempt, output.prefilled_tokens)
            if done:
                self._let_go(output.request_id, entry)
            if entry is not None:
                self._observer.output(entry, output, now_s)
            if entry is None or entry.aborting:
                if output.kv is not None:
                    self._commands.release_kv(output.kv.lease_id)
                if entry is not None and done:
                    aborted.append(entry)
            else:
                if output.kv is not None:
                    self._policy.hold(entry.owner, output.kv)
                message = output_to_wire(output, entry.request_id, entry.attempt)
                outputs.setdefault(entry.owner, []).append(message)
            if done:
                self._policy.finished(output.request_id)
        self._report(step, outputs)
        for entry in aborted:
            self._aborted(entry)

    def _report(self, step: EngineStep, outputs: dict[str, list[worker_pb2.RequestOutput]]) -> None:
        report = step_to_wire(step)
        report.made_at_s = self._clock()
        shared = worker_pb2.SessionResponse(step=report)
        if not step.shape.tokens:
            # Nothing was computed, requests only ended: routers without one among them learn nothing but the load.
            shared = worker_pb2.SessionResponse(load=report.load)
        for session in self._sessions:
            message = shared
            if session.key in outputs:
                message = worker_pb2.SessionResponse(step=report)
                message.step.outputs.extend(outputs[session.key])
            elif self._reports.shared:
                message = worker_pb2.SessionResponse()
                message.CopyFrom(shared)
            self._reports.add_others(message.step.load if message.HasField("step") else message.load, session)
            session.reported_s = self._clock()
            self._sessions.send(session, message)

    def _lease_closed(self, event: LeaseClosed) -> None:
        self._observer.lease_closed(event.outcome)
        owner = self._policy.lease_closed(event.lease_id, event.outcome)
        session = None if owner is None else self._sessions.find(owner)
        if session is not None:
            closed = worker_pb2.LeaseClosed(lease_id=event.lease_id, outcome=lease_outcome_to_wire(event.outcome))
            self._sessions.send(session, worker_pb2.SessionResponse(lease_closed=closed))

    def _aborted(self, entry: LedgerEntry) -> None:
        session = self._sessions.find(entry.owner)
        if session is not None:
            aborted = worker_pb2.Aborted(request_id=entry.request_id, attempt=entry.attempt)
            self._sessions.send(session, worker_pb2.SessionResponse(aborted=aborted))

    def _let_go(self, engine_request_id: str, entry: LedgerEntry | None) -> None:
        self._ledger.close(engine_request_id)
        if entry is not None:
            self._commitments.drop(entry.owner, entry.request_id, entry.attempt)
