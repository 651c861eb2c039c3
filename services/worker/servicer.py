"""The gRPC service of a worker."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
from grpc_health.v1 import health

from services.audit import EventKind, Outcome, note
from services.identity.peer import PeerIdentity, PeerRole
from services.identity.principal import Principal
from services.network.address import peer_host
from services.rpc.caller import caller
from services.rpc.errors import (
    EngineFailureError,
    InvalidRequestError,
    PermissionDeniedError,
    RequestError,
    abort,
)
from services.rpc.peers import ANY_ROLE, Roles, peer_of
from services.worker.hub import WorkerHub
from services.worker.sessions import RouterSession
from slos_serve.v1 import worker_pb2, worker_pb2_grpc

SERVICE_NAME = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
PEER_ROLES: Roles = {
    f"/{SERVICE_NAME}/Session": frozenset({PeerRole.ROUTER}),
    f"/{SERVICE_NAME}/Describe": frozenset({PeerRole.ROUTER, PeerRole.OPERATOR}),
    f"/{SERVICE_NAME}/Drain": frozenset({PeerRole.ROUTER, PeerRole.OPERATOR}),
    f"/{health.SERVICE_NAME}/": ANY_ROLE,
}
"""Roles that may call what a worker serves, where processes show certificates."""
MAX_ROUTER_ID_CHARACTERS = 256
"""Characters of a router's id at most."""
HELLO_TIMEOUT_S = 10.0
"""Seconds that a router may take from opening a session to its hello."""

_log = logging.getLogger(__name__)


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """Reads commands from sessions and writes events to them; the hub decides what a command means."""

    def __init__(self, hub: WorkerHub, request_drain: Callable[[float | None], None]) -> None:
        """
        Args:
            request_drain: called to begin the drain, with a grace in seconds; None: the configured grace.
        """
        self._hub = hub
        self._request_drain = request_drain

    # A coroutine that writes, not a generator: when the router is gone, its `finally` runs at once and not whenever an
    # abandoned generator is collected.
    async def Session(  # type: ignore[override]  # noqa: N802 -- the name in worker.proto
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        try:
            router_id = await self._hello(request_iterator)
            session = self._hub.open(router_id, _holder(peer_of(context), router_id))
        except RequestError as error:
            await abort(context, error, refused=f"/{SERVICE_NAME}/Session")
        reader = asyncio.create_task(self._read(session, request_iterator), name=f"commands of {session.key}")
        try:
            async for message in session.outbox.messages():
                await context.write(message)
        finally:
            self._hub.close(session)
            reader.cancel()
        if session.outbox.error is not None:
            await abort(context, session.outbox.error)

    async def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.DescribeResponse:
        return worker_pb2.DescribeResponse(description=self._hub.description())

    async def Drain(  # noqa: N802
        self, request: worker_pb2.DrainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.DrainResponse:
        grace_s = request.grace_s if request.HasField("grace_s") else None
        if grace_s is not None and not (math.isfinite(grace_s) and grace_s >= 0):
            await abort(context, InvalidRequestError(f"must be finite, not negative; got {grace_s}", field="grace_s"))
        note(
            EventKind.DRAIN,
            Outcome.DONE,
            self._hub.worker_id,
            who=_principal(peer_of(context)),
            peer=peer_host(context.peer()),
            detail="Drain was called",
        )
        self._request_drain(grace_s)
        return worker_pb2.DrainResponse(running_requests=self._hub.requests)

    async def _hello(self, commands: AsyncIterator[worker_pb2.SessionRequest]) -> str:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(aiter(commands), None)
        except TimeoutError:
            first = None
        if first is None or first.WhichOneof("command") != "hello":
            raise InvalidRequestError("the first command on a session must be hello", field="hello")
        if not first.hello.router_id:
            raise InvalidRequestError("must not be empty", field="hello.router_id")
        if len(first.hello.router_id) > MAX_ROUTER_ID_CHARACTERS:
            raise InvalidRequestError(f"at most {MAX_ROUTER_ID_CHARACTERS} characters", field="hello.router_id")
        if first.hello.worker_id not in ("", self._hub.worker_id):
            raise InvalidRequestError(f"this is worker {self._hub.worker_id}", field="hello.worker_id")
        return first.hello.router_id

    async def _read(self, session: RouterSession, commands: AsyncIterator[worker_pb2.SessionRequest]) -> None:
        try:
            async for command in commands:
                self._obey(session, command)
        except RequestError as error:
            _log.warning("router %s broke the protocol: %s", session.router_id, error)
            session.outbox.fail(error)
        except Exception:  # noqa: BLE001 -- whatever a command does, the worker and the other routers go on
            _log.exception("a command of router %s failed", session.router_id)
            session.outbox.fail(EngineFailureError("a command failed; the worker's log has the details"))
        else:
            session.outbox.end()

    def _obey(self, session: RouterSession, command: worker_pb2.SessionRequest) -> None:
        match command.WhichOneof("command"):
            case "submit":
                self._hub.submit(session, command.submit)
            case "abort":
                self._hub.abort(session, command.abort)
            case "release_kv":
                self._hub.release_kv(session, command.release_kv)
            case "expect":
                self._hub.expect(session, command.expect)
            case "batch":
                for one in command.batch.commands:
                    self._obey(session, one)
            case "hello":
                raise InvalidRequestError("a session has one hello", field="hello")
            case _:
                raise InvalidRequestError("no command that this worker knows", field="command")


def _holder(peer: PeerIdentity | None, router_id: str) -> str:
    """Return the identity to which a router's sessions belong; empty where routers show no certificate.

    Raises:
        PermissionDeniedError: the certificate is bound to another router.
    """
    if peer is None:
        return ""
    if not peer.covers(router_id):
        _log.warning("%s asked for a session as router %s", peer, router_id)
        note(EventKind.SESSION, Outcome.REFUSED, router_id, detail=f"it was asked for by {peer}")
        raise PermissionDeniedError(f"the certificate is that of {peer}", field="hello.router_id")
    return peer.uri


def _principal(peer: PeerIdentity | None) -> Principal:
    """Return who calls, for the audit log: whoever the certificate names, where callers show one."""
    return caller() if peer is None else Principal(str(peer), "", frozenset())
