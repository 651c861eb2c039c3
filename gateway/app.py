"""The process of a gateway: its HTTP application, and the server that runs it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from gateway.certificate import follow_certificate
from gateway.endpoints import Endpoints, Vocabulary, model_list
from gateway.guard import Guard, passed_on
from gateway.health import ClusterHealth
from gateway.http_errors import INVALID, HttpError, http_error_of
from gateway.limit import BodyLimit
from gateway.observer import Observer
from services.config.credentials import authenticator
from services.config.exposure import ExposedError, check_exposure
from services.config.redis import redis_connection, redis_options
from services.config.settings import GatewaySettings, Settings
from services.config.tls import TlsError, check_gateway, client_tls, cluster_tls, shows_cluster_certificate
from services.http.sse import ClientGoneError
from services.identity.key_file import KeyFileError
from services.identity.peer import PeerRole
from services.model.directory import ModelDirectory, ModelNotFoundError, locate_model
from services.model.tokenizer import BrokenTokenizerError, Tokenizer
from services.network.address import BindError, join_address, listening_socket, local_address
from services.network.proxies import reach_directly
from services.rpc.guard import Authenticates
from services.rpc.tls import ClusterTls
from services.state.connection import StateUrlError
from services.telemetry.credentials import observe_credentials
from services.telemetry.meters import Meters
from services.telemetry.process import ProcessTelemetry
from services.telemetry.traces import Traces
from slos_serve import AsyncClient, RetryPolicy, SlosServeError, Tls
from slos_serve.connection import is_loopback

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Seconds for which an idle connection is kept: longer than clients and proxies keep theirs, so that they close it."""
BACKLOG = 2048
"""Connections that may wait to be accepted."""
CLIENT_CLOSED_REQUEST = 499
"""Status, as nginx uses it, of a request whose client left; nobody reads it, but logs and metrics show it."""
HEALTH_TIMEOUT_S = 2.0
"""Seconds in which a router must answer a health check; probes of an orchestrator usually wait a little longer."""


def build_app(
    options: GatewaySettings,
    routers: tuple[str, ...],
    model: ModelDirectory | None,
    meters: Meters,
    traces: Traces,
    tls: Tls | None = None,
    authenticator: Authenticates | None = None,
    cluster: ClusterTls | None = None,
) -> FastAPI:
    """Return the HTTP application.

    Args:
        tls: how routers are called; None: unencrypted.
        model: the model that is served, if it is on this machine; else log probabilities name tokens by their ids.
        cluster: the certificate behind `tls`, which is followed when it is replaced; None: it is not.
        authenticator: checks credentials before bodies are read; None: only routers check them.
    """
    # A refusal is the HTTP client's to retry; only another router is tried at once.
    once = RetryPolicy(max_attempts=1)
    # Whether credentials may go unencrypted is decided here, once.
    client = AsyncClient(*routers, tls=tls, insecure_credentials=True, retry=once)
    health = ClusterHealth(routers, tls)
    credential = passed_on if overheard_at(options, routers, tls) == "" else _nothing
    endpoints = Endpoints(client, None if model is None else _vocabulary(model), options.body_timeout_s, credential)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        jobs = () if cluster is None else (follow_certificate(cluster, (client, health)), cluster.watch())
        tasks = [asyncio.create_task(job) for job in jobs]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
        await health.close()

    app = FastAPI(title="slos-serve", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    app.add_exception_handler(HttpError, _failed)
    app.add_exception_handler(SlosServeError, _call_failed)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(ClientGoneError, _nobody_left)
    app.add_exception_handler(Exception, _broken)
    app.add_api_route("/v1/completions", endpoints.completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", endpoints.chat, methods=["POST"])

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        state = await client.cluster_state(timeout_s=HEALTH_TIMEOUT_S, metadata=credential(request.scope))
        known = model is not None and model.name == state.model
        return JSONResponse(model_list(state.model, model.max_context_tokens if model and known else None))

    @app.get("/health")
    @app.get("/ping")
    async def is_healthy() -> Response:
        match await health.ready(HEALTH_TIMEOUT_S):
            case True:
                return Response(status_code=200)
            case False:
                raise HttpError(503, "server_error", "no_worker", "no worker takes requests")
            case None:
                raise HttpError(502, "server_error", "router_unreachable", "no router answers")

    paths = frozenset(route.path for route in app.routes if isinstance(route, APIRoute))
    if authenticator is not None:
        app.add_middleware(Guard, authenticator=authenticator)
    app.add_middleware(Observer, meters=meters, traces=traces, routes=paths)
    return app


async def serve(settings: Settings) -> int:
    """Run a gateway until SIGTERM or SIGINT; return its exit code. Errors of configuration are logged, not raised."""
    options = settings.gateway
    routers = options.routers or (local_address(settings.router.host, settings.router.port),)
    reach_directly(os.environ, (router.rpartition(":")[0] for router in routers))
    try:
        check_exposure(settings.auth, "gateway.host", options.host)
        check_gateway(options)
        cluster = cluster_tls(settings.tls, PeerRole.GATEWAY)
        tls = client_tls(settings.router, options, cluster)
        _check_way(settings, routers, tls)
        state = redis_connection(redis_options(settings)) if settings.auth.keys_in_redis else None
        credentials = authenticator(settings, state)
        listening = listening_socket(options.host, options.port, BACKLOG)
    except (BindError, TlsError, ExposedError, KeyFileError, StateUrlError) as error:
        log.error("%s", error)
        return 2
    gateway_id = f"gateway-{socket.gethostname()}-{os.getpid()}"
    telemetry = ProcessTelemetry(settings.telemetry, "slos-serve-gateway", gateway_id)
    if credentials is not None:
        observe_credentials(telemetry.meters, credentials)
    model = await asyncio.to_thread(_model, settings)
    followed = cluster if shows_cluster_certificate(settings.router) else None
    app = build_app(options, routers, model, telemetry.meters, telemetry.traces, tls, credentials, followed)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ssl_certfile=options.tls_certificate,
            ssl_keyfile=options.tls_key,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(options.drain_grace_s),
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.end)
    port: int = listening.getsockname()[1]
    log.info("gateway to %s on %s", ", ".join(routers), join_address(options.host, port))
    telemetry.serve()
    reading = None if credentials is None else asyncio.create_task(credentials.run(), name="credentials")
    try:
        await server.serve(sockets=[listening])
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if state is not None:
            await state.close()
        await asyncio.to_thread(telemetry.close)
    return 0 if server.started else 2


def overheard_at(options: GatewaySettings, routers: tuple[str, ...], tls: Tls | None) -> str:
    """Return the address of a router to which credentials would go unencrypted over a network; empty if none is."""
    if tls is not None or options.insecure_credentials:
        return ""
    return next((router for router in routers if not is_loopback(router)), "")


def _check_way(settings: Settings, routers: tuple[str, ...], tls: Tls | None) -> None:
    """Refuse to hand credentials on where others can listen; where none are checked, they are just not handed on.

    Raises:
        ExposedError: others could listen.
    """
    router = overheard_at(settings.gateway, routers, tls)
    if router and settings.auth.on:
        raise ExposedError(
            f"gateway.routers: credentials of clients would go unencrypted to {router}, which is not on this machine; "
            "use TLS (router.tls_trust), or set gateway.insecure_credentials = true if nobody can listen on the way"
        )


def _nothing(_scope: Scope) -> dict[str, str]:
    return {}


class _Server(uvicorn.Server):
    """A uvicorn server that ends in order on SIGTERM, where uvicorn would send itself the signal once more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        self.should_exit = True


def _model(settings: Settings) -> ModelDirectory | None:
    try:
        return locate_model(settings.model, weights=False)
    except ModelNotFoundError as error:
        log.info("log probabilities will name tokens by their ids: %s", error)
        return None


def _vocabulary(model: ModelDirectory) -> Vocabulary | None:
    try:
        tokenizer = Tokenizer(model.path)
    except (FileNotFoundError, BrokenTokenizerError) as error:
        log.info("log probabilities will name tokens by their ids: %s", error)
        return None
    return Vocabulary(model.name, lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False))


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return JSONResponse(error.body, error.status, error.headers)


async def _call_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, SlosServeError)
    return await _failed(request, http_error_of(error))


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _failed(request, HttpError(error.status_code, INVALID, "not_found", message, headers=error.headers))


async def _nobody_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _broken(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return await _failed(
        request, HttpError(500, "server_error", "internal_error", "the gateway failed on this request")
    )
