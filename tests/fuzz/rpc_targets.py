"""Every RPC of router and worker, called by hostile clients and hostile routers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from smg_grpc_proto import vllm_engine_pb2

from slos_serve.v1 import contract_pb2, inference_pb2, sampling_pb2, worker_pb2
from tests.fuzz import doors, messages, values
from tests.fuzz.doors import PATIENCE_S, Door, check_status
from tests.fuzz.stage import INFERENCE, WORKER
from tests.fuzz.targets import Frames, Target
from tests.fuzz.watch import FaultError

VLLM = "/vllm.grpc.engine.VllmEngine"
WIRE_SHARE = 0.02
"""Share of calls that go over a real connection."""
STAYS_S = 5.0
HEADERS = (
    *("x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-profile", "x-slo-on-overload", "x-slo-application", "x-tenant-id"),
    *("x-request-id", "traceparent", "tracestate", "authorization", "x-slo-value", "x-slo-session"),
)


def metadata(rng: Random) -> tuple[tuple[str, str | bytes], ...]:
    """Return metadata that gRPC can carry: printable ASCII, or bytes under a name for bytes."""
    if rng.random() < 0.7:
        return ()
    pairs: list[tuple[str, str | bytes]] = []
    for _ in range(rng.randrange(1, 4)):
        name, text = rng.choice(HEADERS), values.text(rng)[:2000]
        if rng.random() < 0.1:
            pairs.append((name + "-bin", text.encode("utf-8", "replace")))
        else:
            pairs.append((name, "".join(letter for letter in text if " " <= letter <= "~").strip()))
    return tuple(pairs)


@dataclass(slots=True)
class RpcTarget:
    """One method that takes one message."""

    door: Door
    method: str
    seeds: Sequence[Message]
    share: int
    answers: int = 3
    """Answers after which the client leaves a stream, at most."""
    stays_s: float | None = None
    """Seconds after which the client leaves: where a whole text is one answer, it may be a long one."""
    name: str = field(init=False)
    _channel: grpc.aio.Channel | None = None

    def __post_init__(self) -> None:
        service, method = self.method.strip("/").split("/")
        self.name = f"{service.rpartition('.')[2]}.{method}"

    def make(self, rng: Random) -> Frames:
        return (messages.mutated(rng.choice(self.seeds), rng),)

    async def send(self, frames: Frames, rng: Random) -> str:
        headers, answers = metadata(rng), rng.randrange(self.answers + 1)
        if rng.random() < WIRE_SHARE:
            return "wire: " + await self._over_the_wire(frames[0], headers, answers)
        return await doors.call(
            self.door,
            self.method,
            frames[0],
            headers,
            enough=lambda _answer, count: count >= max(1, answers),
            stays_s=self.stays_s,
        )

    async def _over_the_wire(self, content: bytes, headers: Any, answers: int) -> str:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.door.address)
        # Read as a stream, an answer that is one message is a stream of one.
        method: Any = self._channel.unary_stream(self.method)
        call = method(content, metadata=headers, timeout=self.stays_s or PATIENCE_S)
        try:
            for _ in range(max(1, answers)):
                if await call.read() is grpc.aio.EOF:
                    return "OK"
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                if self.stays_s is not None:
                    return "left waiting"
                raise FaultError("no answer in time") from error
            if "larger than max" in (error.details() or "") or error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return f"{error.code().name} of gRPC"
            return check_status(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        finally:
            call.cancel()
        return "OK, left"


@dataclass(slots=True)
class SessionTarget:
    """A session with a worker, opened by something that claims to be a router."""

    door: Door
    worker_id: str
    seeds: Sequence[worker_pb2.SessionRequest]
    share: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"Worker.Session of {self.worker_id}"

    def make(self, rng: Random) -> Frames:
        hello = worker_pb2.SessionRequest(hello=worker_pb2.Hello(router_id=f"hostile-{rng.randrange(1000)}"))
        first = messages.mutated(hello, rng) if rng.random() < 0.1 else hello.SerializeToString()
        commands = (messages.mutated(rng.choice(self.seeds), rng) for _ in range(rng.randrange(1, 5)))
        return (first, *commands)

    async def send(self, frames: Frames, rng: Random) -> str:
        answers = rng.randrange(1, 6)
        return await doors.call(
            self.door, f"{WORKER}/Session", frames, enough=lambda _answer, count: count >= answers, idle_s=0.01
        )


def generate_requests() -> list[inference_pb2.GenerateRequest]:
    """Return requests that are served as they are, which together use every field."""
    plain = inference_pb2.GenerateRequest(text="The capital of France is")
    plain.sampling.max_tokens = 4
    chat = inference_pb2.GenerateRequest(request_id="chat-1", application="chat", tenant="t1", expected_output_tokens=5)
    chat.chat.messages.add(role="system", content="be brief")
    chat.chat.messages.add(role="user", content="hello")
    chat.sampling.max_tokens = 3
    chat.contract.profile = "chat"
    tokens = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[20, 21, 22, 300]))
    tokens.sampling.CopyFrom(
        sampling_pb2.SamplingParams(
            temperature=0.5, top_p=0.9, top_k=10, min_p=0.1, presence_penalty=0.1, frequency_penalty=0.1,
            repetition_penalty=1.1, max_tokens=4, min_tokens=1, seed=7, stop=["ab", "b"], stop_token_ids=[30],
            ignore_eos=True, skip_special_tokens=True, logprobs=2, include_stop_str_in_output=True,
        )
    )  # fmt: skip
    tokens.sampling.logit_bias[40] = 1.0
    promised = inference_pb2.GenerateRequest(text="think")
    promised.sampling.max_tokens = 6
    promised.contract.stages.add().prefill.ttft_s = 2.0
    promised.contract.stages.add().decode.tpot_s = 0.2
    promised.contract.value = 2.0
    promised.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    staged = inference_pb2.GenerateRequest(text="think in stages")
    staged.sampling.max_tokens = 6
    staged.contract.stages.add().prefill.max_slowdown = 5.0
    staged.contract.stages.add().decode.CopyFrom(_decode(0.1, "</think>"))
    staged.contract.stages.add().decode.CopyFrom(_decode(0.3, ""))
    staged.contract.final_stages.add().CopyFrom(_decode(0.2, ""))
    staged.contract.session_id = "session-1"
    staged.contract.session_final = True
    staged.contract.task_deadline_s = 30.0
    return [plain, chat, tokens, promised, staged]


def _decode(tpot_s: float, ends_with: str) -> contract_pb2.DecodeStage:
    return contract_pb2.DecodeStage(tpot_s=tpot_s, ends_with=ends_with)


def vllm_requests() -> list[Any]:
    """Return requests of vLLM's protocol that are served as they are."""
    text = vllm_engine_pb2.GenerateRequest(request_id="vllm-1", text="hello", stream=True)
    text.sampling_params.max_tokens = 3
    tokens = vllm_engine_pb2.GenerateRequest(request_id="vllm-2")
    tokens.tokenized.input_ids.extend([20, 21, 22])
    tokens.sampling_params.max_tokens = 2
    return [text, tokens]


def commands(kv: worker_pb2.KvHandle, *, exports: bool) -> list[worker_pb2.SessionRequest]:
    """Return commands of a router to one kind of worker, which are obeyed as they are.

    Args:
        kv: handle of a KV cache that a decode worker is told to pull.
    """
    submit = worker_pb2.Submit(
        request_id="r1", attempt=1, token_ids=[20, 21, 22, 23], export_kv=exports, deadline_in_s=1.0, tpot_s=0.1,
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01", application="a", tracestate="a=b", promised_tokens=64,
    )  # fmt: skip
    submit.sampling.max_tokens = 4
    pull = worker_pb2.Submit(request_id="r2", token_ids=[20, 21, 22, 23], generated_tokens=1, kv_source=kv)
    pull.sampling.max_tokens = 4
    made = [
        worker_pb2.SessionRequest(submit=submit),
        worker_pb2.SessionRequest(abort=worker_pb2.Abort(request_id="r1", attempt=1)),
        worker_pb2.SessionRequest(release_kv=worker_pb2.ReleaseKv(lease_id="lease")),
        worker_pb2.SessionRequest(expect=worker_pb2.Expect(request_id="r3", promised_tokens=128, tpot_s=0.1)),
    ]
    if not exports:
        made.append(worker_pb2.SessionRequest(submit=pull))
    return [*made, worker_pb2.SessionRequest(batch=worker_pb2.CommandBatch(commands=made))]


def rpc_targets(router: Door, workers: dict[str, Door], kv: worker_pb2.KvHandle) -> list[Target]:
    """Return the targets that are RPCs.

    Args:
        kv: handle of a KV cache of this cluster.
    """
    generate = generate_requests()
    worker = workers["decode-0"]
    methods: list[Target] = [
        RpcTarget(router, f"{INFERENCE}/Generate", generate, 200),
        RpcTarget(router, f"{INFERENCE}/Quote", [inference_pb2.QuoteRequest(request=one) for one in generate], 160),
        RpcTarget(router, f"{INFERENCE}/Cancel", [inference_pb2.CancelRequest(request_id="chat-1")], 60),
        RpcTarget(router, f"{INFERENCE}/GetClusterState", [inference_pb2.GetClusterStateRequest()], 20),
        RpcTarget(
            router, f"{INFERENCE}/WatchClusterState", [inference_pb2.WatchClusterStateRequest(interval_s=0.1)], 20, 1
        ),
        RpcTarget(router, f"{VLLM}/Generate", vllm_requests(), 100, stays_s=STAYS_S),
        RpcTarget(router, f"{VLLM}/Abort", [vllm_engine_pb2.AbortRequest(request_ids=["vllm-1", "x"])], 30),
        RpcTarget(router, f"{VLLM}/HealthCheck", [vllm_engine_pb2.HealthCheckRequest()], 5),
        RpcTarget(router, f"{VLLM}/GetModelInfo", [vllm_engine_pb2.GetModelInfoRequest()], 5),
        RpcTarget(router, f"{VLLM}/GetServerInfo", [vllm_engine_pb2.GetServerInfoRequest()], 5),
        RpcTarget(worker, f"{WORKER}/Describe", [worker_pb2.DescribeRequest()], 10),
        RpcTarget(worker, f"{WORKER}/Drain", [worker_pb2.DrainRequest(grace_s=1.0)], 15),
    ]
    sessions: list[Target] = [
        SessionTarget(workers["prefill-0"], "prefill-0", commands(kv, exports=True), 70),
        SessionTarget(workers["decode-0"], "decode-0", commands(kv, exports=False), 70),
    ]
    return [*methods, *sessions]


async def serves_an_innocent(router: Door) -> None:
    """Check that a request like any other is served, whatever was sent before.

    Raises:
        FaultError: it is not.
    """
    request = inference_pb2.GenerateRequest(text="an innocent request")
    request.sampling.max_tokens = 2
    ended = asyncio.Event()

    def enough(answer: inference_pb2.GenerateResponse, _count: int) -> bool:
        if answer.HasField("finished"):
            ended.set()
        return ended.is_set()

    outcome = await doors.call(router, f"{INFERENCE}/Generate", request.SerializeToString(), enough=enough)
    if not ended.is_set():
        raise FaultError(f"an innocent request ended with {outcome}")
