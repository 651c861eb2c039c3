"""Between one engine and the routers that use it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.engine.protocol import (
    Engine,
    EngineDeadError,
    EngineFacts,
    EngineRequest,
    EngineStep,
    LeaseClosed,
    RequestRejected,
)
from services.model.misfit import misfit
from services.rpc.errors import DuplicateRequestError, InvalidRequestError, RequestError, SessionReplacedError
from services.wire import (
    WireError,
    WorkerDescription,
    description_to_wire,
    lease_outcome_to_wire,
    output_to_wire,
    step_to_wire,
    submit_from_wire,
)
from services.worker.ledger import LedgerEntry, RequestLedger
from services.worker.load_reports import LoadReports
from services.worker.observer import WorkerObserver
from services.worker.orders import EngineOrders
from services.worker.policy import Refusal, RolePolicy
from services.worker.router_commitments import RouterCommitments
from services.worker.sessions import RouterSession, SessionBook
from services.worker.watchdog import Stall, patience_s
from slos_serve.v1 import worker_pb2

if TYPE_CHECKING:
    from services.telemetry.process import ProcessTelemetry

MIN_REQUEST_LIMIT = 64
REQUESTS_PER_RUNNING = 4
"""Requests a worker takes, over those its engine works on at once. More only wait, and wait better in the router."""

_FAILURES = {
    worker_pb2.FAILURE_KIND_NOT_ACCEPTING: "not_accepting",
    worker_pb2.FAILURE_KIND_INVALID: "invalid",
    worker_pb2.FAILURE_KIND_ENGINE: "engine",
}

_log = logging.getLogger(__name__)


class WorkerHub:
    """Hands the commands of all sessions to the engine, and each event to the session it belongs to."""

    def __init__(
        self,
        engine: Engine,
        facts: EngineFacts,
        policy: RolePolicy,
        worker_id: str,
        telemetry: ProcessTelemetry,
        *,
        max_unread_events: int,
        heartbeat_s: float,
        step_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.draining = False
        self._engine = engine
        self._facts = facts
        self._policy = policy
        self._worker_id = worker_id
        self._heartbeat_s = heartbeat_s
        self._step_timeout_s = step_timeout_s
        self._clock = clock
        self._request_limit = max(MIN_REQUEST_LIMIT, REQUESTS_PER_RUNNING * facts.max_running_requests)
        self._ledger = RequestLedger()
        self._sessions = SessionBook(max_unread_events, self.close, clock)
        self._orders = EngineOrders(engine, self._rejected)
        self._commitments = RouterCommitments(clock)
        self._reports = LoadReports(engine, self._sessions, self._commitments)
        self._idle = asyncio.Event()
        self._idle.set()
        self._progressed = False
        self._observer = WorkerObserver(telemetry, engine, facts, policy, worker_id)
        self._observer.watch(self._ledger, self._sessions)

    @property
    def requests(self) -> int:
        """Requests the engine has."""
        return len(self._ledger)

    def description(self) -> worker_pb2.WorkerDescription:
        return description_to_wire(
            WorkerDescription(self._worker_id, self._policy.role, self._facts, self._engine.load(), self.draining)
        )

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            EngineDeadError: the engine is gone, or has stopped working.
        """
        tasks = [
            asyncio.create_task(self._consume_events(), name="engine events"),
            asyncio.create_task(self._orders.carry_out(), name="engine orders"),
            asyncio.create_task(self._beat(), name="worker heartbeat"),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def drain(self) -> None:
        """Take nothing new, and tell the routers."""
        self.draining = True
        for session in self._sessions:
            self._sessions.send(session, worker_pb2.SessionResponse(draining=worker_pb2.Draining()))

    async def wait_idle(self) -> None:
        """Until no request and no lease is left."""
        await self._idle.wait()

    def end_sessions(self, error: RequestError | None) -> None:
        """Close every session: after what it has yet to read, or at once with an error."""
        for session in self._sessions:
            if error is None:
                session.outbox.end()
            else:
                self._sessions.fail(session, error)

    # Commands.

    def open(self, router_id: str) -> RouterSession:
        """A session for a router. The newest counts: a router that lost its stream does not wait for us to notice."""
        for older in self._sessions:
            if older.router_id == router_id:
                self._sessions.fail(older, SessionReplacedError(f"router {router_id} opened another session"))
        session = self._sessions.open(router_id)
        self._commitments.open(session.key)
        self._sessions.send(session, worker_pb2.SessionResponse(description=self.description()))
        _log.info("router %s opened a session", router_id)
        return session

    def close(self, session: RouterSession) -> None:
        """The session is over: what its router has here is aborted and released. Idempotent."""
        if not self._sessions.remove(session):
            return
        self._commitments.close(session.key)
        entries = [entry for entry in self._ledger.owned_by(session.key) if not entry.aborting]
        leases = self._policy.leases_of(session.key)
        for entry in entries:
            self._abort(entry)
        for lease_id in leases:
            self._orders.release_kv(lease_id)
        _log.info(
            "session of router %s ended; requests aborted: %d, leases released: %d",
            session.router_id,
            len(entries),
            len(leases),
        )

    def submit(self, session: RouterSession, message: worker_pb2.Submit) -> None:
        """
        Raises:
            InvalidRequestError, DuplicateRequestError: the router does not keep to the protocol.
        """
        if not message.request_id:
            raise InvalidRequestError("must not be empty", field="submit.request_id")
        engine_request_id = RequestLedger.engine_request_id(session.key, message.request_id, message.attempt)
        if self._ledger.find(engine_request_id) is not None:
            raise DuplicateRequestError(
                f"request {message.request_id}, attempt {message.attempt}, is here already", field="submit.request_id"
            )
        admitted = self._admit(message, engine_request_id)
        if isinstance(admitted, Refusal):
            kind = worker_pb2.FAILURE_KIND_INVALID if admitted.invalid else worker_pb2.FAILURE_KIND_NOT_ACCEPTING
            self._fail(session, message.request_id, message.attempt, kind, admitted.detail)
            return
        self._ledger.open(
            LedgerEntry(
                engine_request_id,
                session.key,
                message.request_id,
                message.attempt,
                prompt_tokens=len(admitted.token_ids),
                computes_prompt=admitted.kv_source is None,
                traceparent=message.traceparent,
                tracestate=message.tracestate,
                arrived_s=self._clock(),
            )
        )
        self._idle.clear()
        self._orders.submit(admitted)
        if self._commitments.submitted(session.key, message):
            self._reports.commitments_changed(session)

    def expect(self, session: RouterSession, message: worker_pb2.Expect) -> None:
        """Room for a request that will come later."""
        self._commitments.expect(session.key, message)
        self._reports.commitments_changed(session)

    def abort(self, session: RouterSession, message: worker_pb2.Abort) -> None:
        """Unknown requests, and those that ended a moment ago, are ignored."""
        engine_request_id = RequestLedger.engine_request_id(session.key, message.request_id, message.attempt)
        entry = self._ledger.find(engine_request_id)
        if entry is not None and not entry.aborting:
            self._abort(entry)

    def release_kv(self, session: RouterSession, message: worker_pb2.ReleaseKv) -> None:
        """Leases that are unknown, closed, or another router's are ignored."""
        if message.lease_id in self._policy.leases_of(session.key):
            self._policy.given_up(message.lease_id)
            self._orders.release_kv(message.lease_id)

    def _admit(self, message: worker_pb2.Submit, engine_request_id: str) -> EngineRequest | Refusal:
        if self.draining:
            return Refusal("the worker is draining", invalid=False)
        if len(self._ledger) >= self._request_limit:
            return Refusal(f"the worker is full: it has {len(self._ledger)} requests", invalid=False)
        try:
            request = submit_from_wire(message, engine_request_id)
        except WireError as error:
            return Refusal(str(error), invalid=True)
        unfit = misfit(request.token_ids, self._facts.vocabulary_size, self._facts.max_context_tokens)
        if unfit is not None:
            return Refusal(f"token_ids: {unfit.detail}", invalid=True)
        return self._policy.admit(request, self._facts)

    def _abort(self, entry: LedgerEntry) -> None:
        entry.aborting = True
        self._orders.abort(entry.engine_request_id)

    # Events.

    async def _consume_events(self) -> None:
        async for event in self._engine.events():
            self._progressed = True
            match event:
                case EngineStep():
                    self._step(event)
                case RequestRejected():
                    self._rejected(event)
                case LeaseClosed():
                    self._lease_closed(event)
            self._note_idle()
        raise EngineDeadError("the engine's events came to an end")

    def _step(self, step: EngineStep) -> None:
        now_s = self._clock()
        self._observer.step(step)
        outputs: dict[str, list[worker_pb2.RequestOutput]] = {}
        let_go: list[LedgerEntry] = []
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
                    self._orders.release_kv(output.kv.lease_id)
                if entry is not None and done:
                    let_go.append(entry)
            else:
                if output.kv is not None:
                    self._policy.hold(entry.owner, output.kv)
                message = output_to_wire(output, entry.request_id, entry.attempt)
                outputs.setdefault(entry.owner, []).append(message)
            if done:
                self._policy.finished(output.request_id)
        self._report(step, outputs)
        for entry in let_go:
            self._aborted(entry)

    def _report(self, step: EngineStep, outputs: dict[str, list[worker_pb2.RequestOutput]]) -> None:
        report = step_to_wire(step)
        report.made_at_s = self._clock()
        shared = worker_pb2.SessionResponse(step=report)
        if not step.shape.tokens:
            # Nothing was computed, requests only ended: news of the load to all but their own routers.
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

    def _rejected(self, event: RequestRejected) -> None:
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
            self._fail(session, entry.request_id, entry.attempt, kind, event.detail)
        self._note_idle()

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

    def _fail(
        self, session: RouterSession, request_id: str, attempt: int, kind: worker_pb2.FailureKind.ValueType, detail: str
    ) -> None:
        self._observer.refused(_FAILURES[kind])
        failed = worker_pb2.RequestFailed(request_id=request_id, attempt=attempt, kind=kind, detail=detail)
        self._sessions.send(session, worker_pb2.SessionResponse(request_failed=failed))

    def _note_idle(self) -> None:
        if not self._ledger and not self._policy.open_leases:
            self._idle.set()

    async def _beat(self) -> None:
        """Tells the load to sessions that hear nothing else, and looks whether the engine works."""
        stall = Stall()
        checked_s = self._clock()
        while True:
            await asyncio.sleep(self._heartbeat_s)
            now_s = self._clock()
            progressed, self._progressed = self._progressed, False
            stall = stall.after(now_s - checked_s, self._heartbeat_s, progressed=progressed, requests=self.requests)
            checked_s = now_s
            if stall.stalled_s > patience_s(self._step_timeout_s, self._facts.kv_lease_s, self._policy.open_leases):
                raise EngineDeadError(f"{self.requests} requests, but no sign of life for {stall.stalled_s:.0f} s")
            for session in self._sessions:
                if not len(session.outbox) and now_s - session.reported_s >= self._heartbeat_s / 2:
                    self._sessions.send(session, self._reports.load(session))

    def _let_go(self, engine_request_id: str, entry: LedgerEntry | None) -> None:
        """The engine has let go of a request."""
        self._ledger.close(engine_request_id)
        if entry is not None:
            self._commitments.drop(entry.owner, entry.request_id, entry.attempt)
