"""What each router is told of a worker's load, the work of the other routers included."""

from __future__ import annotations

import asyncio

from services.engine.protocol import Engine
from services.wire import load_to_wire, others_to_wire
from services.worker.claims import Claims
from services.worker.sessions import RouterSession, SessionBook
from slos_serve.v1 import worker_pb2


class LoadReports:
    """While one router is alone nothing is added. Owned by one event loop."""

    def __init__(self, engine: Engine, sessions: SessionBook, claims: Claims) -> None:
        self._engine = engine
        self._sessions = sessions
        self._claims = claims
        self._changed: set[str] = set()
        """Sessions whose claims changed since the others were told."""

    @property
    def shared(self) -> bool:
        """More than one router works here: no two of them are told the same."""
        return self._claims.shared

    def load(self, session: RouterSession) -> worker_pb2.SessionResponse:
        """The load as this router is to have it."""
        message = worker_pb2.SessionResponse(load=load_to_wire(self._engine.load()))
        self.add_others(message.load, session)
        return message

    def add_others(self, load: worker_pb2.WorkerLoad, session: RouterSession) -> None:
        if self._claims.shared:
            load.others.CopyFrom(others_to_wire(self._claims.others(session.key)))

    def claimed(self, session: RouterSession) -> None:
        """A router has promised something of this worker: all others are told at once, and plan with what is left."""
        if not self._claims.shared:
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._tell)
        self._changed.add(session.key)

    def _tell(self) -> None:
        changed, self._changed = self._changed, set()
        for session in self._sessions:
            if changed - {session.key}:
                self._sessions.send(session, self.load(session))
