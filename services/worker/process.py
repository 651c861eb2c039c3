"""The life of a worker process, from the start of its engine to its exit code."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, replace

from services.config.redis import redis_connection
from services.config.settings import RedisSettings, WorkerSettings
from services.engine.protocol import Engine, EngineDeadError, EngineFacts, EngineStartError
from services.network.address import BindError, advertised_address, check_address
from services.rpc.errors import DrainingError, RequestError, WorkerLostError
from services.rpc.peers import PeerGuard
from services.rpc.server import RpcServer
from services.rpc.tls import ClusterTls
from services.state.connection import StateConnection, StateUrlError
from services.state.registration import Registration
from services.state.registry import WorkerIdTakenError, WorkerRecord, WorkerRegistry
from services.telemetry.process import ProcessTelemetry
from services.telemetry.settings import TelemetrySettings
from services.worker.hub import WorkerHub
from services.worker.policy import RolePolicy
from services.worker.servicer import PEER_ROLES, SERVICE_NAME, WorkerServicer
from slos_serve.v1 import worker_pb2_grpc

CLOSE_GRACE_S = 5.0
"""Seconds that routers have to read the end of their sessions. A router that is cut off loses the last tokens of its
streams, which then start again elsewhere; a worker whose routers have read everything does not wait."""
ENGINE_SHUTDOWN_S = 20.0
"""Seconds that an engine may take to stop before the process ends without it."""

_log = logging.getLogger(__name__)


class WorkerProcess:
    """Runs one engine as a member of the cluster.

    Exit codes: 0 after a drain; 1 if it could not start, its engine died, or its id belongs to another worker.
    """

    def __init__(
        self,
        worker_id: str,
        worker: WorkerSettings,
        redis: RedisSettings,
        policy: RolePolicy,
        engine: Engine,
        telemetry: TelemetrySettings,
        model_name: str = "",
        tls: ClusterTls | None = None,
    ) -> None:
        """
        Args:
            tls: what the worker shows to routers, and demands of them; None: they talk unencrypted.
            model_name: name under which clients ask for the model; empty: the engine's own name for it.
        """
        self.address = ""
        """Address of the gRPC server as host:port; empty until it serves."""
        self.metrics_address = ""
        """Address of the page for Prometheus as host:port; empty if there is none."""
        self.serving = asyncio.Event()
        self._worker_id = worker_id
        self._worker = worker
        self._redis = redis
        self._policy = policy
        self._engine = engine
        self._telemetry = telemetry
        self._model_name = model_name
        self._tls = tls
        self._stop = asyncio.Event()
        self._grace_s = worker.drain_grace_s

    def request_drain(self, grace_s: float | None = None) -> None:
        """Begin to drain. Only the first call sets the grace, which is configured unless given. Seconds."""
        if grace_s is not None and not self._stop.is_set():
            self._grace_s = grace_s
        self._stop.set()

    async def run(self) -> int:
        """Serve until drained or left without an engine, and return the exit code."""
        state: StateConnection | None = None
        try:
            if self._worker.port:
                check_address(self._worker.host, self._worker.port)
            state = redis_connection(self._redis)
            facts = await self._start_engine()
            return 0 if facts is None else await self._serve(facts, state)
        except (EngineStartError, BindError, StateUrlError) as error:
            _log.error("worker %s cannot start: %s", self._worker_id, error)
            return 1
        finally:
            await self._shut_down_engine()
            if state is not None:
                await state.close()

    async def _start_engine(self) -> EngineFacts | None:
        """Start the engine and return its facts; None if the worker was told to stop before the engine was ready."""
        start = asyncio.create_task(self._engine.start(), name="engine start")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if start.done():
            facts = start.result()
            return replace(facts, model=self._model_name or facts.model)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        _log.info("worker %s stopped before its engine was ready", self._worker_id)
        return None

    async def _serve(self, facts: EngineFacts, state: StateConnection) -> int:
        # Not before the engine has started: it may fork, and this has threads.
        telemetry = ProcessTelemetry(self._telemetry, f"slos-serve-{self._policy.role.value}", self._worker_id)
        try:
            return await self._serve_measured(facts, state, telemetry)
        finally:
            await asyncio.to_thread(telemetry.close)

    async def _serve_measured(self, facts: EngineFacts, state: StateConnection, telemetry: ProcessTelemetry) -> int:
        hub = WorkerHub(
            self._engine,
            facts,
            self._policy,
            self._worker_id,
            telemetry,
            max_unread_events=self._worker.max_unread_events,
            heartbeat_s=self._redis.heartbeat_s,
            step_timeout_s=self._worker.step_timeout_s,
        )
        server = RpcServer(
            [SERVICE_NAME],
            self._worker.max_message_bytes,
            with_reflection=self._worker.reflection,
            with_channelz=self._worker.channelz,
            peers=None if self._tls is None else PeerGuard(self._tls.identity.cluster, PEER_ROLES),
        )
        worker_pb2_grpc.add_WorkerServicer_to_server(WorkerServicer(hub, self.request_drain), server.grpc)
        port = server.bind(self._worker.host, self._worker.port, self._tls)
        self.address = advertised_address(self._worker.host, port, self._worker.advertise_host)
        self.metrics_address = telemetry.serve()
        await server.start()
        registration = self._registration(facts, state)
        # From here on every way out leaves the registry and ends the sessions.
        events = asyncio.create_task(hub.run(), name="hub")
        heartbeats = asyncio.create_task(registration.run(), name="registration")
        watching = None if self._tls is None else asyncio.create_task(self._tls.watch(), name="certificate")
        try:
            await server.set_serving(SERVICE_NAME, True)
            _log.info(
                "%s worker %s serves %s on %s", self._policy.role.value, self._worker_id, facts.model, self.address
            )
            self.serving.set()
            code, farewell = await self._until_over(hub, server, registration, events, heartbeats)
        finally:
            if watching is not None:
                watching.cancel()
            heartbeats.cancel()
            await asyncio.gather(heartbeats, return_exceptions=True)
            await registration.remove()
        hub.end_sessions(farewell)
        await server.stop(CLOSE_GRACE_S)
        events.cancel()
        await asyncio.gather(events, return_exceptions=True)
        _log.info("worker %s ends with code %d; %s", self._worker_id, code, self._policy.summary())
        return code

    def _registration(self, facts: EngineFacts, state: StateConnection) -> Registration:
        record = WorkerRecord(
            worker_id=self._worker_id,
            role=self._policy.role,
            address=self.address,
            engine_epoch=facts.engine_epoch,
            compatibility=asdict(facts.compatibility),
            model=facts.model,
            emulated=facts.emulated,
            metrics_address=self.metrics_address,
        )
        ttl_s = self._redis.heartbeat_ttl_s
        registry = WorkerRegistry(state, self._redis.prefix, ttl_s)
        return Registration(registry, record, self._redis.heartbeat_s, patience_s=ttl_s + self._redis.heartbeat_s)

    async def _until_over(
        self,
        hub: WorkerHub,
        server: RpcServer,
        registration: Registration,
        events: asyncio.Task[None],
        heartbeats: asyncio.Task[None],
    ) -> tuple[int, RequestError | None]:
        """Wait until the worker has to end; return its exit code and the error that its routers are told, if any."""
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((events, heartbeats, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if events.done():
            return self._engine_lost(events)
        code = 0
        if heartbeats.done():
            code = 1
            taken = heartbeats.exception()
            if not isinstance(taken, WorkerIdTakenError):
                heartbeats.result()
            _log.error("%s; this worker drains", taken)
        await server.set_serving(SERVICE_NAME, False)
        hub.drain()
        registration.drain()
        _log.info("draining for at most %g s; requests: %d", self._grace_s, hub.requests)
        idle = asyncio.create_task(hub.wait_idle(), name="idle")
        await asyncio.wait((idle, events), timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        if events.done():
            return self._engine_lost(events)
        if hub.requests or self._policy.open_leases:
            _log.warning("the grace is over; cut off: %d requests, %d leases", hub.requests, self._policy.open_leases)
            return code, DrainingError("the worker was stopped and its grace is over")
        return code, None

    def _engine_lost(self, events: asyncio.Task[None]) -> tuple[int, RequestError]:
        error = events.exception()
        if isinstance(error, EngineDeadError):
            _log.error("the engine is dead: %s", error)
        else:
            _log.error("the worker failed", exc_info=error)
        return 1, WorkerLostError(f"the engine is dead: {error}")

    async def _shut_down_engine(self) -> None:
        try:
            async with asyncio.timeout(ENGINE_SHUTDOWN_S):
                await self._engine.shutdown()
        except TimeoutError:
            _log.error("the engine did not stop within %g s", ENGINE_SHUTDOWN_S)
