"""A router that says what a test wrote down, over real gRPC."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from services.rpc.errors import RequestError, UnknownRequestError, to_status
from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2

Script = list[inference_pb2.GenerateResponse | RequestError | float]
PATIENCE_S = 30.0
INFERENCE = "slos_serve.v1.Inference"


def admission(request_id: str = "r-1", **fields: object) -> inference_pb2.GenerateResponse:
    message = inference_pb2.Admission(request_id=request_id, verdict=inference_pb2.VERDICT_GUARANTEED, prompt_tokens=3)
    for name, value in fields.items():
        setattr(message, name, value)
    return inference_pb2.GenerateResponse(admission=message)


def tokens(index: int, text: str) -> inference_pb2.GenerateResponse:
    chunk = inference_pb2.TokenChunk(index=index, token_ids=[100 + index], text=text)
    return inference_pb2.GenerateResponse(tokens=chunk)


def finished(count: int) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        finished=inference_pb2.Finished(
            reason=sampling_pb2.FINISH_REASON_LENGTH,
            prompt_tokens=3,
            completion_tokens=count,
            achieved=inference_pb2.Achieved(
                ttft_s=0.1,
                kept=True,
                stages=[inference_pb2.StageAchieved(tokens=count, mean_tpot_s=0.01, required_tpot_s=0.02)],
            ),
        )
    )


def whole_stream() -> Script:
    return [admission(), tokens(0, "Hello"), tokens(1, " world"), finished(2)]


@dataclass
class ScriptedRouter(inference_pb2_grpc.InferenceServicer):
    """Answers call k with script k, and the last one for ever."""

    scripts: list[Script]
    requests: list[inference_pb2.GenerateRequest] = field(default_factory=list)
    metadata: list[Mapping[str, str | bytes]] = field(default_factory=list)
    credentials: list[str | bytes | None] = field(default_factory=list)
    """Credential of every call, in the order of calls; None for a call without one."""
    left_s: list[float | None] = field(default_factory=list)
    ended: queue.Queue[str] = field(default_factory=queue.Queue)
    """Ids of the requests whose client went away."""
    cancelled: list[str] = field(default_factory=list)
    address: str = ""
    model: str = ""
    """Name of the model that the cluster serves."""
    state: inference_pb2.ClusterState | None = None
    """State that it tells; None: its address as its id, and the model."""
    state_error: RequestError | None = None
    """Error with which it answers whoever asks for the state; None: it tells the state."""
    health: health.HealthServicer = field(default_factory=health.HealthServicer)
    """Health of its services; `Inference` is SERVING until a test says otherwise."""

    def Generate(  # noqa: N802 - the names are the wire's
        self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.GenerateResponse]:
        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
        self._note(request, context)
        gone, said_all = threading.Event(), threading.Event()

        def over() -> None:
            gone.set()
            if not said_all.is_set():
                self.ended.put(request.request_id)

        if not context.add_callback(over):
            over()
        for item in script:
            if isinstance(item, RequestError):
                said_all.set()
                context.abort_with_status(rpc_status.to_status(to_status(item, request.request_id)))
            elif isinstance(item, float):
                gone.wait(item)
            else:
                yield item
        said_all.set()

    def Quote(  # noqa: N802
        self, request: inference_pb2.QuoteRequest, context: grpc.ServicerContext
    ) -> inference_pb2.QuoteResponse:
        self._note(request.request, context)
        item = self.scripts[0][0]
        if isinstance(item, RequestError):
            context.abort_with_status(rpc_status.to_status(to_status(item)))
        assert isinstance(item, inference_pb2.GenerateResponse)
        return inference_pb2.QuoteResponse(admission=item.admission)

    def Cancel(  # noqa: N802 - the names are the wire's
        self, request: inference_pb2.CancelRequest, context: grpc.ServicerContext
    ) -> inference_pb2.CancelResponse:
        self._note_credential(context)
        if request.request_id not in self.cancelled:
            error = UnknownRequestError("no request with this id is running", field="request_id")
            context.abort_with_status(rpc_status.to_status(to_status(error)))
        return inference_pb2.CancelResponse()

    def GetClusterState(  # noqa: N802 - the names are the wire's
        self, request: inference_pb2.GetClusterStateRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GetClusterStateResponse:
        self._note_credential(context)
        if self.state_error is not None:
            context.abort_with_status(rpc_status.to_status(to_status(self.state_error)))
        state = self.state or inference_pb2.ClusterState(router_id=self.address, model=self.model)
        return inference_pb2.GetClusterStateResponse(state=state)

    def WatchClusterState(  # noqa: N802
        self, request: inference_pb2.WatchClusterStateRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.WatchClusterStateResponse]:
        yield inference_pb2.WatchClusterStateResponse()

    def _note_credential(self, context: grpc.ServicerContext) -> None:
        self.credentials.append(dict(context.invocation_metadata()).get("authorization"))

    def _note(self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self._note_credential(context)
        self.metadata.append(dict(context.invocation_metadata()))
        self.left_s.append(context.time_remaining())


@contextlib.contextmanager
def scripted(
    *scripts: Script, credentials: grpc.ServerCredentials | None = None, host: str = "127.0.0.1"
) -> Iterator[ScriptedRouter]:
    router = ScriptedRouter(list(scripts))
    server = grpc.server(futures.ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServicer_to_server(router, server)
    router.health.set(INFERENCE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(router.health, server)
    add: Callable[[str], int] = server.add_insecure_port
    port = server.add_secure_port(f"{host}:0", credentials) if credentials is not None else add(f"{host}:0")
    router.address = f"{host}:{port}"
    server.start()
    try:
        yield router
    finally:
        server.stop(None).wait()
