"""The load that a worker reports to each router, with the work of the other routers in it."""

from __future__ import annotations

import asyncio

from services.engine.protocol import Engine
from services.wire import load_to_wire, others_to_wire
from services.worker.router_commitments import RouterCommitments
from services.worker.sessions import RouterSession, SessionBook
from slos_serve.v1 import worker_pb2


class LoadReports:
    """Messages about a worker's load, one version for each router.

    The work of other routers is added only while several use the worker. Instances belong to one event loop.
    """

    def __init__(self, engine: Engine, sessions: SessionBook, commitments: RouterCommitments) -> None:
        self._engine = engine
        self._sessions = sessions
        self._commitments = commitments
        self._changed: set[str] = set()
        """Keys of the sessions whose commitments have changed since the other routers were told."""

    @property
    def shared(self) -> bool:
        """Whether more than one router uses this worker, so that no two of them get the same report."""
        return self._commitments.shared

    def load(self, session: RouterSession) -> worker_pb2.SessionResponse:
        """Build the load report for one router."""
        message = worker_pb2.SessionResponse(load=load_to_wire(self._engine.load()))
        self.add_others(message.load, session)
        return message

    def add_others(self, load: worker_pb2.WorkerLoad, session: RouterSession) -> None:
        """Add the work of the other routers to a load that one router is sent."""
        if self._commitments.shared:
            load.others.CopyFrom(others_to_wire(self._commitments.others(session.key)))

    def commitments_changed(self, session: RouterSession) -> None:
        """Tell the other routers at once that a router has committed the worker to more, so that they plan with it."""
        if not self._commitments.shared:
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._send)
        self._changed.add(session.key)

    def _send(self) -> None:
        changed, self._changed = self._changed, set()
        for session in self._sessions:
            if changed - {session.key}:
                self._sessions.send(session, self.load(session))
