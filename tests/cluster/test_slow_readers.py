"""Clients that stop reading, and clients that go: memory stays bounded, and workers get their blocks back."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from slos_serve.v1 import inference_pb2_grpc
from tests.support.cluster import greedy
from tests.support.eventually import wait_until

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest
    from tests.support.http_door import HttpDoor

pytestmark = pytest.mark.cluster

MIB = 2**20
READERS = 32
TOKENS = 400
LOGPROBS = 20
"""Log probabilities make a token larger than all the buffers on the way to a client can hide."""
BOUND = 64 * MIB
"""Over what an idle door holds: two megabytes a stream."""
SLOW_CHANNEL = (
    # A client that takes no more than HTTP/2's smallest window before somebody asks for it.
    ("grpc.http2.lookahead_bytes", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
FREED_WITHIN_S = 9.0  # the lease of a KV cache is 10 s: what only its end gives back is too late


def generated(cluster: ClusterUnderTest) -> int:
    return sum(worker.running_requests for worker in cluster.state().workers)


def wait_generated(cluster: ClusterUnderTest) -> None:
    """Until the workers have made every token: all of it now waits for its reader."""
    wait_until(lambda: cluster.state().running_requests >= 1, "the streams run")
    wait_until(lambda: generated(cluster) == 0, "everything is generated", 60.0)


def tokens_in(message: Any) -> int:
    """New ones, of a message of either protocol."""
    tokens = message.chunk if hasattr(message, "chunk") else message.tokens
    return len(tokens.token_ids)


@pytest.mark.parametrize("door_name", ["slos_serve.v1.Inference", "vllm.grpc.engine.VllmEngine"])
def test_the_router_holds_no_more_than_a_bounded_text_for_who_does_not_read(
    emulated: ClusterUnderTest, door_name: str
) -> None:
    emulated.wait_empty()
    channel = grpc.insecure_channel(emulated.address, options=SLOW_CHANNEL)
    stub: Any = inference_pb2_grpc.InferenceStub(channel)
    requests: list[Any] = [greedy([20 + index, 21], TOKENS) for index in range(READERS)]
    for request in requests:
        request.sampling.logprobs = LOGPROBS
    if door_name.startswith("vllm"):
        smg = pytest.importorskip("smg_grpc_proto")
        stub = smg.vllm_engine_pb2_grpc.VllmEngineStub(channel)
        sampling = {"max_tokens": TOKENS, "ignore_eos": True, "logprobs": LOGPROBS}
        requests = [
            smg.vllm_engine_pb2.GenerateRequest(
                request_id=f"slow-{index}", text="hello", stream=True, sampling_params=sampling
            )
            for index in range(READERS)
        ]
    before_bytes = emulated.router_memory_bytes()
    streams = [stub.Generate(request, timeout=120) for request in requests]
    for stream in streams:
        next(iter(stream))
    wait_generated(emulated)
    grown = emulated.router_memory_bytes() - before_bytes
    print(f"{door_name}: {READERS} readers that stopped, {TOKENS} tokens each: router grew by {grown / MIB:.1f} MiB")
    assert grown < BOUND
    received = sum(tokens_in(message) for message in streams[0])
    assert TOKENS / 2 <= received <= TOKENS, "who reads on gets the rest, in however many messages"
    channel.close()
    emulated.wait_empty(FREED_WITHIN_S)


def test_neither_does_the_gateway(emulated: ClusterUnderTest, door: HttpDoor) -> None:
    emulated.wait_empty()
    before = (emulated.router_memory_bytes(), door.memory_bytes())
    body = {"prompt": "hello", "max_tokens": TOKENS, "ignore_eos": True, "logprobs": LOGPROBS}
    connections: list[socket.socket] = [door.open_stream(body, receive_buffer_bytes=4096) for _ in range(READERS)]
    for connection in connections:
        connection.recv(500)
    wait_generated(emulated)
    grown = [
        after - had for after, had in zip((emulated.router_memory_bytes(), door.memory_bytes()), before, strict=True)
    ]
    print(
        f"http: {READERS} readers that stopped: "
        f"router grew by {grown[0] / MIB:.1f}, gateway by {grown[1] / MIB:.1f} MiB"
    )
    assert max(grown) < BOUND
    for connection in connections:
        connection.close()
    emulated.wait_empty(FREED_WITHIN_S)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1, 0.5])
def test_a_client_of_vllms_protocol_that_leaves_frees_everything(emulated: ClusterUnderTest, delay_s: float) -> None:
    smg = pytest.importorskip("smg_grpc_proto")
    emulated.wait_empty()
    stub: Any = smg.vllm_engine_pb2_grpc.VllmEngineStub(emulated.channel)
    before = emulated.state().counters.cancelled
    sampling = {"max_tokens": 4000, "ignore_eos": True}
    streams = [
        stub.Generate(
            smg.vllm_engine_pb2.GenerateRequest(
                request_id=f"leaves-{delay_s}-{index}", text="hello", stream=True, sampling_params=sampling
            ),
            timeout=60,
        )
        for index in range(8)
    ]
    for stream in streams:
        next(stream)
    time.sleep(delay_s)
    for stream in streams:
        stream.cancel()
    emulated.wait_empty(FREED_WITHIN_S)
    assert emulated.state().counters.cancelled == before + 8
    with pytest.raises(grpc.RpcError):
        next(streams[0])
