"""One router process: how it starts from its configuration, serves, and shuts down in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from router.admission.quota_desk import QuotaDesk
from router.admission.record_files import RecordFiles
from router.api.cancelling import Cancelling
from router.api.cluster_state import ClusterReporter
from router.api.endpoints import add_endpoints, endpoint_services
from router.api.frontend import Frontend
from router.api.parsing import Limits
from router.api.rights import ROUTER_PEERS, ROUTER_RIGHTS
from router.cluster.links import WorkerLinks
from router.observability import loop_delay, readings
from router.observability.recorder import Recorder
from router.planner_code import load_or_compile
from router.process_rank import ALONE, ProcessRank
from router.requests.output_coalescer import OutputCoalescer
from router.wiring import RouterParts, build_parts, build_quota_desk
from services.audit import HOST, EventKind, Outcome, note
from services.config.cache_isolation import cache_salts, separates_caches
from services.config.credentials import authenticator
from services.config.exposure import ExposedError, check_exposure
from services.config.profiles import profile_book
from services.config.redis import redis_connection, redis_options
from services.config.settings import RouterSettings, Settings
from services.config.tls import TlsError, cluster_tls, process_id, server_tls
from services.identity.authenticator import Authenticator
from services.identity.key_file import KeyFileError
from services.identity.peer import PeerRole
from services.model.directory import ModelDirectory, ModelNotFoundError, locate_model
from services.model.prompt_threads import PromptThreads
from services.model.tokenizer import BrokenTokenizerError, Tokenizer
from services.network.address import BindError, join_address
from services.rpc.guard import Guard
from services.rpc.peers import PeerGuard
from services.rpc.server import RpcServer
from services.rpc.tls import ClusterTls
from services.slo.contract import ContractError, ProfileBook
from services.state.cancellations import Cancellations
from services.state.cluster_secret import ClusterSecret
from services.state.connection import StateConnection, StateUrlError
from services.state.journal import RequestJournal
from services.state.registry import WorkerRegistry
from services.telemetry.process import ProcessTelemetry
from slos_serve.v1 import inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    from router.observability.console.server import ConsoleServer

log = logging.getLogger(__name__)

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
TICK_S = 0.25
"""Seconds between two looks at what no event brings: lost workers, held requests, readiness."""
COLLECTOR_THRESHOLDS = (2_000, 100, 20)
"""Thresholds of `gc.set_threshold`. One pass over 2,000 young objects takes 2 ms; over ten thousand it took up to 30,
in which no stream went on.
"""
WIRE_HEADROOM = 2
"""Factor by which gRPC's own limit on a message lies above ours, so that messages between get an error that names the
field.
"""
WORKER_MESSAGE_BYTES = 64 * 1024 * 1024
"""Size limit of messages from workers; a step report holds the tokens of every request in the step."""


async def serve(settings: Settings, place: ProcessRank = ALONE) -> int:
    """Run a router until SIGTERM or SIGINT. Returns the exit code; errors of configuration are logged, not raised.

    Args:
        place: this process among the router processes that share the port.
    """
    loaded = _load(settings)
    if loaded is None:
        return 2
    model, tokenizer, profiles, state, credentials, tls, router_id = loaded
    options = settings.router
    journal = RequestJournal(state, settings.redis.prefix, settings.redis.journal_ttl_s)
    telemetry = ProcessTelemetry(settings.telemetry, "slos-serve-router", router_id)
    cache_key = ClusterSecret(state, settings.redis.prefix, "prefix-caches")
    recorder = Recorder(
        telemetry.meters, telemetry.traces, model.name, profiles.contracts, settings.telemetry.max_label_values
    )
    coalescer = OutputCoalescer()
    record = _record_files(options, router_id)
    quotas = build_quota_desk(settings, state, router_id, place.processes, telemetry.meters, recorder.over_quota)
    parts = build_parts(options, settings.tenants, model.name, journal, time.monotonic, recorder, quotas, record=record)
    places = (parts.rounds.cancel, parts.dispatcher.cancel)
    cancelling = Cancelling(router_id, places, journal, Cancellations(state, settings.redis.prefix))
    registry = WorkerRegistry(state, settings.redis.prefix, settings.redis.heartbeat_ttl_s)
    links = WorkerLinks(
        router_id,
        registry,
        parts.dispatcher,
        poll_s=settings.redis.heartbeat_s,
        silence_s=settings.redis.heartbeat_ttl_s,
        max_message_bytes=WORKER_MESSAGE_BYTES,
        coalescer=coalescer,
        tls=tls,
    )
    reporter = ClusterReporter(
        router_id=router_id,
        rank=place,
        cluster=parts.cluster,
        links=links,
        requests=parts.requests,
        admission_loop=parts.rounds,
        counters=parts.counters,
        history=parts.history,
        state=state,
        coalescer=coalescer,
        quotas=quotas,
        clock=time.monotonic,
    )
    frontend = Frontend(
        router_id=router_id,
        tokenizer=tokenizer,
        prompt_threads=PromptThreads(),
        profiles=profiles,
        limits=Limits(
            model_name=model.name,
            vocabulary_size=model.vocabulary_size,
            max_context_tokens=model.max_context_tokens,
            default_max_tokens=options.default_max_tokens,
            max_prompt_characters=model.max_context_tokens * tokenizer.longest_token_characters,
        ),
        cache_salts=cache_salts(settings, cache_key.value),
        admission_loop=parts.rounds,
        quotas=quotas,
        queue=parts.queue,
        dispatcher=parts.dispatcher,
        cluster=parts.cluster,
        requests=parts.requests,
        events=parts.events,
        journal=journal,
        cancelling=cancelling,
        state=state,
        coalescer=coalescer,
        max_message_bytes=options.max_message_bytes,
        max_queued_requests=options.max_queued_requests,
        no_worker_patience_s=options.no_worker_patience_s,
        reporter=reporter,
        clock=time.monotonic,
        traces=telemetry.traces,
    )
    readings.observe(telemetry.meters, parts.counters, parts.requests, parts.cluster, parts.core, credentials)
    server = _server(options, place, credentials, tls)
    inference_pb2_grpc.add_InferenceServicer_to_server(frontend, server.grpc)
    add_endpoints(server.grpc, frontend, cancelling, parts.cluster, parts.requests, model)
    stop = _stop_signal()
    # The kernel sends connections to a shared port as soon as it is bound, which must not be before they can be served.
    port = 0 if place.shares_port else _bind(server, options, tls)
    if port is None:
        return 2
    compiling = await load_or_compile()
    port = port or _bind(server, options, tls)
    if port is None:
        return 2
    _spare_the_collector()
    reporter.metrics_address = telemetry.serve()
    console = await _start_console(settings, credentials, reporter, parts, journal)
    await server.start()
    journal.start()
    log.info("router %s serves %s on %s", router_id, model.name, join_address(options.host, port))
    tasks = [
        asyncio.create_task(links.run(), name="links"),
        asyncio.create_task(coalescer.run(), name="coalescer"),
        asyncio.create_task(cancelling.listen(), name="cancellations"),
        asyncio.create_task(_tick(parts, server), name="tick"),
        asyncio.create_task(loop_delay.watch(telemetry.meters), name="loop delay"),
        *(() if credentials is None else (asyncio.create_task(credentials.run(), name="credentials"),)),
        *([asyncio.create_task(cache_key.run(), name="cache key")] if separates_caches(settings) else []),
        asyncio.create_task(quotas.run(), name="quotas"),
        *(() if tls is None else (asyncio.create_task(tls.watch(), name="certificate"),)),
    ]
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            log.error("%s ended: %r", task.get_name(), task.exception())
            return 1
        await _drain(router_id, frontend, parts, server, options.drain_grace_s)
        return 0
    finally:
        if console is not None:
            await console.stop()
        await server.stop(grace_s=1.0)
        for task in (stopped, *compiling, *tasks):
            task.cancel()
        await asyncio.gather(stopped, *compiling, *tasks, return_exceptions=True)
        await _close(record, quotas, journal, state, telemetry)


_Loaded = tuple[ModelDirectory, Tokenizer, ProfileBook, StateConnection, Authenticator | None, ClusterTls | None, str]
UNUSABLE = (
    *(ModelNotFoundError, FileNotFoundError, BrokenTokenizerError),
    *(ContractError, StateUrlError, KeyFileError, ExposedError, TlsError),
)
"""Errors that say that the configuration names something that is missing or makes no sense."""


def _load(settings: Settings) -> _Loaded | None:
    """Return what the configuration names; None, with a line in the log, if it cannot be used."""
    try:
        check_exposure(settings.auth, "router.host", settings.router.host)
        if settings.console.enabled:
            check_exposure(settings.auth, "console.host", settings.console.host)
        tls = cluster_tls(settings.tls, PeerRole.ROUTER)
        default_id = f"router-{socket.gethostname()}-{os.getpid()}"
        router_id = process_id(tls, "router.id", settings.router.id, default_id)
        model = locate_model(settings.model, weights=False)
        state = redis_connection(redis_options(settings))
        credentials = authenticator(settings, state)
        return model, Tokenizer(model.path), profile_book(settings.profiles), state, credentials, tls, router_id
    except UNUSABLE as error:
        log.error("%s", error)
        return None


def _server(
    options: RouterSettings, place: ProcessRank, credentials: Authenticator | None, tls: ClusterTls | None
) -> RpcServer:
    own_door = tls is not None and options.tls_certificate is None
    return RpcServer(
        [INFERENCE, *endpoint_services()],
        options.max_message_bytes * WIRE_HEADROOM,
        with_reflection=options.reflection,
        with_channelz=options.channelz,
        share_port=place.shares_port,
        guard=None if credentials is None else Guard(credentials, ROUTER_RIGHTS),
        peers=PeerGuard(tls.identity.cluster, ROUTER_PEERS) if tls is not None and own_door else None,
    )


def _bind(server: RpcServer, options: RouterSettings, tls: ClusterTls | None) -> int | None:
    """Return the port that the server listens on; None, with a line in the log, if it cannot listen."""
    try:
        return server.bind(options.host, options.port, server_tls(options, tls))
    except (BindError, TlsError) as error:
        log.error("%s", error)
        return None


async def _close(
    record: RecordFiles | None,
    quotas: QuotaDesk,
    journal: RequestJournal,
    state: StateConnection,
    telemetry: ProcessTelemetry,
) -> None:
    """Write what is left to write, and let go of Redis."""
    if record is not None:
        record.close()
    await quotas.close()
    await journal.close()
    await state.close()
    await asyncio.to_thread(telemetry.close)


def _record_files(options: RouterSettings, router_id: str) -> RecordFiles | None:
    """Return where admission is recorded; None, and a line in the log, if it is not to be or cannot be."""
    if options.record is None:
        return None
    directory = options.record / router_id
    try:
        record = RecordFiles(directory, options.record_mebibytes * 1024 * 1024)
    except OSError as error:
        log.error("admission cannot be recorded in %s: %s", directory, error)
        return None
    log.info("admission is recorded in %s", directory)
    return record


def _spare_the_collector() -> None:
    """Keep the garbage collector from stopping streams.

    Everything loaded so far lives as long as the process, and a pass over it took a tenth of a second in which no
    stream went on, so it is frozen. What requests leave behind is freed by reference counts; cycles are few, and are
    looked for seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _start_console(
    settings: Settings,
    credentials: Authenticator | None,
    reporter: ClusterReporter,
    parts: RouterParts,
    journal: RequestJournal,
) -> ConsoleServer | None:
    """Start the console, if there is to be one, and have the reporter tell its URL."""
    options, router = settings.console, settings.router
    if not options.enabled:
        return None
    # An HTTP server is in memory only if it serves.
    from router.observability.console.server import ConsoleServer
    from router.observability.console.view import RouterView

    view = RouterView(reporter.message, parts.history, parts.requests, time.monotonic, options.trace_url, journal)
    certificate = (
        None if router.tls_certificate is None or router.tls_key is None else (router.tls_certificate, router.tls_key)
    )
    console = ConsoleServer(options, view, credentials, certificate)
    reporter.console_url = await console.start()
    return console


async def _tick(parts: RouterParts, server: RpcServer) -> None:
    """Do what no event brings, until cancelled: tick the dispatcher and the rounds, and report readiness."""
    serving = False
    while True:
        parts.dispatcher.tick()
        parts.rounds.tick()
        usable = parts.cluster.ready
        if usable is not serving:
            serving = usable
            await _set_serving(server, serving)
            if serving:
                log.info("ready to take requests")
            else:
                log.info("not ready: %s", parts.cluster.missing())
        await asyncio.sleep(TICK_S)


async def _set_serving(server: RpcServer, serving: bool) -> None:
    for name in (INFERENCE, *endpoint_services()):
        await server.set_serving(name, serving)


async def _drain(router_id: str, frontend: Frontend, parts: RouterParts, server: RpcServer, grace_s: float) -> None:
    """Refuse new requests, and let those that run end; cancel what still runs after `grace_s` seconds."""
    note(EventKind.DRAIN, Outcome.DONE, router_id, who=HOST)
    frontend.draining = True
    await _set_serving(server, False)
    if len(parts.requests):
        log.info("draining %d requests, for at most %.0f s", len(parts.requests), grace_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await parts.life.idle.wait()
    for request in parts.requests:
        parts.dispatcher.cancel(request.request_id)
