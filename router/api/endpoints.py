"""The services that a router offers besides its own, where the packages of their protocols are installed."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING

from router.api.cancelling import Cancelling
from router.api.frontend import Frontend
from router.cluster.cluster_view import ClusterView
from router.requests.live_requests import LiveRequests
from services.identity.principal import Right
from services.model.directory import ModelDirectory
from services.rpc.caller import caller
from services.rpc.errors import NO_WORKERS

if TYPE_CHECKING:
    import grpc.aio

log = logging.getLogger(__name__)

VLLM_ENGINE = "vllm.grpc.engine.VllmEngine"


def endpoint_services() -> tuple[str, ...]:
    """Return the full names of the services that `add_endpoints` adds."""
    return (VLLM_ENGINE,) if importlib.util.find_spec("smg_grpc_proto") is not None else ()


def add_endpoints(
    server: grpc.aio.Server,
    frontend: Frontend,
    cancelling: Cancelling,
    cluster: ClusterView,
    requests: LiveRequests,
    model: ModelDirectory,
) -> None:
    """Let a server answer vLLM's protocol too, if the protocol's package is installed."""
    if not endpoint_services():
        log.info("%s is not served: the package smg-grpc-proto is not installed", VLLM_ENGINE)
        return
    from smg_grpc_proto import vllm_engine_pb2_grpc

    from router.api.vllm_endpoint import ServedModel, VllmEndpoint

    endpoint = VllmEndpoint(
        generate=frontend.Generate,
        cancel=cancelling.on_call,
        missing=lambda: cluster.missing() if caller().may(Right.OBSERVE) else "" if cluster.ready else NO_WORKERS,
        running=lambda: len(requests),
        model=ServedModel(
            name=model.name,
            path=str(model.path),
            vocabulary_size=model.vocabulary_size,
            max_context_tokens=model.max_context_tokens,
            eos_token_ids=model.eos_token_ids,
        ),
    )
    vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(endpoint, server)
