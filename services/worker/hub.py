"""The hub of a worker: it passes the commands of routers to the engine, and events of the engine to routers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.audit import EventKind, Outcome, note
from services.engine.protocol import Engine, EngineDeadError, EngineFacts, EngineRequest, RequestRejected
from services.model.misfit import misfit
from services.rpc.errors import (
    DuplicateRequestError,
    InvalidRequestError,
    PermissionDeniedError,
    RequestError,
    SessionReplacedError,
)
from services.wire import WireError, WorkerDescription, description_to_wire, submit_from_wire
from services.worker.engine_commands import EngineCommands
from services.worker.event_delivery import EventDelivery
from services.worker.ledger import LedgerEntry, RequestLedger
from services.worker.load_reports import LoadReports
from services.worker.observer import WorkerObserver
from services.worker.policy import Refusal, RolePolicy
from services.worker.router_commitments import RouterCommitments
from services.worker.sessions import RouterSession, SessionBook
from services.worker.watchdog import Stall, patience_s
from slos_serve.v1 import worker_pb2

if TYPE_CHECKING:
    from services.telemetry.process import ProcessTelemetry

MIN_REQUEST_LIMIT = 64
REQUESTS_PER_RUNNING = 4
"""Requests that a worker takes for each request that its engine can run at once; `MIN_REQUEST_LIMIT` at least. A chosen
margin: what goes beyond it would only wait, and in the router it can still be placed elsewhere."""

_log = logging.getLogger(__name__)


class WorkerHub:
    """Serves all router sessions with one engine.

    The hub decides which requests the worker takes, and aborts what a session leaves behind when it ends. It watches
    that the engine makes progress. Events reach the sessions through `EventDelivery`.
    """

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
        self.worker_id = worker_id
        self._heartbeat_s = heartbeat_s
        self._step_timeout_s = step_timeout_s
        self._clock = clock
        self._request_limit = max(MIN_REQUEST_LIMIT, REQUESTS_PER_RUNNING * facts.max_running_requests)
        self._ledger = RequestLedger()
        self._sessions = SessionBook(max_unread_events, self.close, clock)
        self._commands = EngineCommands(engine, self._submission_failed)
        self._commitments = RouterCommitments(clock)
        self._reports = LoadReports(engine, self._sessions, self._commitments)
        self._idle = asyncio.Event()
        self._idle.set()
        self._progressed = False
        observer = WorkerObserver(telemetry, engine, facts, policy, worker_id)
        observer.watch(self._ledger, self._sessions)
        self._delivery = EventDelivery(
            self._ledger,
            self._sessions,
            policy,
            self._commands,
            self._commitments,
            self._reports,
            observer,
            clock,
        )

    @property
    def requests(self) -> int:
        """Number of requests that the engine has, aborted ones included until it lets go of them."""
        return len(self._ledger)

    def description(self) -> worker_pb2.WorkerDescription:
        """Describe this worker as it is now."""
        return description_to_wire(
            WorkerDescription(self.worker_id, self._policy.role, self._facts, self._engine.load(), self.draining)
        )

    async def run(self) -> None:
        """Pass commands and events on until cancelled.

        Raises:
            EngineDeadError: the engine is gone, or has stopped working.
        """
        tasks = [
            asyncio.create_task(self._consume_events(), name="engine events"),
            asyncio.create_task(self._commands.run(), name="engine commands"),
            asyncio.create_task(self._beat(), name="worker heartbeat"),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def drain(self) -> None:
        """Take no new requests from now on, and tell the routers."""
        self.draining = True
        for session in self._sessions:
            self._sessions.send(session, worker_pb2.SessionResponse(draining=worker_pb2.Draining()))

    async def wait_idle(self) -> None:
        """Wait until no request and no KV lease is left."""
        await self._idle.wait()

    def end_sessions(self, error: RequestError | None) -> None:
        """Close every session: without an error once its router has read everything, with one at once."""
        for session in self._sessions:
            if error is None:
                session.outbox.end()
            else:
                self._sessions.fail(session, error)

    def open(self, router_id: str, holder: str = "") -> RouterSession:
        """Open a session for a router, in place of any older session of the same router.

        A router that lost its stream opens another before this worker notices the loss.

        Args:
            holder: identity in the router's certificate; empty where routers show none.

        Raises:
            PermissionDeniedError: a session of this router belongs to another identity.
        """
        older_ones = [session for session in self._sessions if session.router_id == router_id]
        if any(older.holder != holder for older in older_ones):
            _log.warning("router %s is connected, and somebody else, %s, asked for its session", router_id, holder)
            note(EventKind.SESSION, Outcome.REFUSED, router_id, detail=f"it was asked for by {holder}")
            raise PermissionDeniedError("this router's session belongs to another identity", field="hello.router_id")
        for older in older_ones:
            self._sessions.fail(older, SessionReplacedError(f"router {router_id} opened another session"))
        session = self._sessions.open(router_id, holder)
        self._commitments.open(session.key)
        self._sessions.send(session, worker_pb2.SessionResponse(description=self.description()))
        _log.info("router %s opened a session", router_id)
        return session

    def close(self, session: RouterSession) -> None:
        """End a session: abort its requests and release its leases. Closing it again does nothing."""
        if not self._sessions.remove(session):
            return
        self._commitments.close(session.key)
        entries = [entry for entry in self._ledger.owned_by(session.key) if not entry.aborting]
        leases = self._policy.leases_of(session.key)
        for entry in entries:
            self._abort(entry)
        for lease_id in leases:
            self._commands.release_kv(lease_id)
        _log.info(
            "session of router %s ended; requests aborted: %d, leases released: %d",
            session.router_id,
            len(entries),
            len(leases),
        )

    def submit(self, session: RouterSession, message: worker_pb2.Submit) -> None:
        """Take a request, or tell the router why not.

        Raises:
            InvalidRequestError: the request has no id.
            DuplicateRequestError: this attempt at the request is here already.
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
            self._delivery.fail(session, message.request_id, message.attempt, kind, admitted.detail)
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
        self._commands.submit(admitted)
        if self._commitments.submitted(session.key, message):
            self._reports.commitments_changed(session)

    def expect(self, session: RouterSession, message: worker_pb2.Expect) -> None:
        """Note that a request will be handed over to this worker later, so that no other router takes its room.

        Raises:
            InvalidRequestError: the expectation makes no sense, or the session expects more than anybody can.
        """
        self._commitments.expect(session.key, message)
        self._reports.commitments_changed(session)

    def abort(self, session: RouterSession, message: worker_pb2.Abort) -> None:
        """Stop working on a request. Requests that are unknown, or have ended a moment ago, are ignored."""
        engine_request_id = RequestLedger.engine_request_id(session.key, message.request_id, message.attempt)
        entry = self._ledger.find(engine_request_id)
        if entry is not None and not entry.aborting:
            self._abort(entry)

    def release_kv(self, session: RouterSession, message: worker_pb2.ReleaseKv) -> None:
        """Give up a KV lease. Leases that are unknown, closed, or another router's are ignored."""
        if message.lease_id in self._policy.leases_of(session.key):
            self._policy.given_up(message.lease_id)
            self._commands.release_kv(message.lease_id)

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
        self._commands.abort(entry.engine_request_id)

    async def _consume_events(self) -> None:
        async for event in self._engine.events():
            self._progressed = True
            self._delivery.deliver(event)
            self._note_idle()
        raise EngineDeadError("the engine's events came to an end")

    def _submission_failed(self, event: RequestRejected) -> None:
        self._delivery.rejected(event)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._ledger and not self._policy.open_leases:
            self._idle.set()

    async def _beat(self) -> None:
        """Report the load to sessions that have heard nothing else lately, and check that the engine works."""
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
