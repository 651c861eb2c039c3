"""A cluster of real processes for tests, and a client that keeps everything its streams said."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from deploy.local.cluster import LocalCluster
from deploy.local.processes import RunningProcess
from services.config.load import load_settings
from slos_serve.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2
from tests.support.eventually import wait_until

WAIT_S = 90.0


@dataclass(slots=True)
class Answer:
    """Everything one stream said."""

    admission: inference_pb2.Admission | None = None
    chunks: list[inference_pb2.TokenChunk] = field(default_factory=list)
    finished: inference_pb2.Finished | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token_id for chunk in self.chunks for token_id in chunk.token_ids]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    def take(self, response: inference_pb2.GenerateResponse) -> None:
        match response.WhichOneof("event"):
            case "admission":
                assert self.admission is None, "one Admission, first"
                self.admission = response.admission
            case "tokens":
                assert self.admission is not None
                assert response.tokens.index == len(self.token_ids), "no token is lost or repeated"
                self.chunks.append(response.tokens)
            case "finished":
                assert self.finished is None
                self.finished = response.finished

    def checked(self) -> Answer:
        """The answer, if the stream was complete."""
        assert self.admission is not None
        assert self.finished is not None
        assert self.finished.completion_tokens == len(self.token_ids)
        return self


@dataclass(slots=True)
class ClusterUnderTest:
    """A running cluster whose processes can be killed and started again."""

    launcher: LocalCluster
    address: str
    channel: grpc.Channel
    workers: dict[str, RunningProcess]
    router: RunningProcess
    gateway_address: str = ""
    """Empty if none was started."""
    api_key: str = ""
    """An operator's key; empty where nobody checks credentials."""

    @property
    def stub(self) -> inference_pb2_grpc.InferenceStub:
        return inference_pb2_grpc.InferenceStub(self.channel)

    def generate(self, request: inference_pb2.GenerateRequest, timeout_s: float = WAIT_S) -> Answer:
        answer = Answer()
        for response in self.stub.Generate(request, timeout=timeout_s):
            answer.take(response)
        return answer.checked()

    def state(self) -> inference_pb2.ClusterState:
        metadata = (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()
        return self.stub.GetClusterState(inference_pb2.GetClusterStateRequest(), timeout=10, metadata=metadata).state

    def router_memory_bytes(self) -> int:
        process = self.router.process()
        assert process is not None
        resident: int = process.memory_info().rss
        return resident

    def worker(self, worker_id: str) -> inference_pb2.WorkerState:
        return next(worker for worker in self.state().workers if worker.worker_id == worker_id)

    def kill(self, worker_id: str) -> list[psutil.Process]:
        """SIGKILL a worker. Returns it and all its descendants, which must go with it."""
        process = self.workers[worker_id].process()
        assert process is not None
        family = [process, *process.children(recursive=True)]
        os.kill(process.pid, signal.SIGKILL)
        return family

    def start_again(self, worker_id: str) -> None:
        role, index = worker_id.split("-")
        self.workers[worker_id] = self.launcher.start_worker(role, int(index))

    def wait_ready(self, workers: int) -> None:
        def ready() -> bool:
            with contextlib.suppress(grpc.RpcError):
                health = [worker.health for worker in self.state().workers]
                return health.count(inference_pb2.WORKER_HEALTH_READY) == workers
            return False

        wait_until(ready, f"{workers} workers ready")

    def wait_empty(self, timeout_s: float = WAIT_S) -> None:
        """No request anywhere, no block used, no lease open."""

        def empty() -> bool:
            state = self.state()
            used = sum(
                worker.kv_blocks_used + worker.kv_blocks_leased + worker.running_requests + worker.waiting_requests
                for worker in state.workers
            )
            return not (state.queued_requests or state.running_requests or used)

        wait_until(empty, "KV occupancy back to nothing", timeout_s)


@contextlib.contextmanager
def cluster_under_test(
    config: Path, environment: Mapping[str, str] | None = None, api_key: str = ""
) -> Iterator[ClusterUnderTest]:
    settings = load_settings(config)
    launcher = LocalCluster(
        settings, config, die_with_parent=True, report=lambda line: None, environment=environment or {}
    )
    running = launcher.start()
    try:
        with grpc.insecure_channel(running.router_address) as channel:
            workers = {
                process.name: process for process in running.processes if process.name.startswith(("prefill", "decode"))
            }
            router = next(process for process in running.processes if process.name == "router")
            yield ClusterUnderTest(
                launcher, running.router_address, channel, workers, router, running.gateway_address, api_key
            )
    finally:
        launcher.stop()


def greedy(
    prompt: list[int] | str, max_tokens: int, *, request_id: str = "", ignore_eos: bool = True
) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(
        request_id=request_id,
        sampling=sampling_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=ignore_eos),
    )
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request
