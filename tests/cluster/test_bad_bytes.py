"""What is no request at all, at both gRPC doors: it gets a status, and the next one is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from slos_serve.v1 import inference_pb2
from tests.support.cluster import greedy

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest

pytestmark = pytest.mark.cluster

INFERENCE = "/slos_serve.v1.Inference/Generate"
VLLM = "/vllm.grpc.engine.VllmEngine/Generate"
DOORS = [INFERENCE, VLLM]
MIB = 2**20

BYTES = {
    "noise": bytes(range(256)) * 4,
    "ends in the middle of a field": b"\x0a\x7fabc",
    "a length beyond the message": b"\x0a\xff\xff\xff\xff\x0f",
    "a group that never ends": b"\x0b" * 200,
    "text that is no UTF-8": b"\x0a\x02\xff\xfe",
    "a number where a text belongs": b"\x08\x01",
}


def raw(cluster: ClusterUnderTest, door: str, content: bytes, *metadata: tuple[str, str | bytes]) -> grpc.StatusCode:
    """How a call with these very bytes ends."""
    call: Any = cluster.channel.unary_stream(door, request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(content, timeout=20, metadata=metadata))
    return caught.value.code()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_message(emulated: ClusterUnderTest, door: str, case: str) -> None:
    assert raw(emulated, door, BYTES[case]) is grpc.StatusCode.INVALID_ARGUMENT
    emulated.generate(greedy([20, 21], 2))


@pytest.mark.parametrize("door", DOORS)
def test_a_hundred_megabytes_are_not_read(emulated: ClusterUnderTest, door: str) -> None:
    before = emulated.router_memory_bytes()
    content = inference_pb2.GenerateRequest(text="x" * (100 * MIB)).SerializeToString()
    assert raw(emulated, door, content) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert emulated.router_memory_bytes() < before + 40 * MIB
    emulated.generate(greedy([20, 21], 2))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("value", ["soon", "", "-5", "1e400", "0x10"])
def test_a_latency_that_is_no_number(emulated: ClusterUnderTest, door: str, value: str) -> None:
    content = greedy([20, 21], 2).SerializeToString()
    if door == VLLM:
        pb2 = pytest.importorskip("smg_grpc_proto").vllm_engine_pb2
        content = pb2.GenerateRequest(request_id="number", text="x").SerializeToString()
    assert raw(emulated, door, content, ("x-slo-tpot-ms", value)) is grpc.StatusCode.INVALID_ARGUMENT
    emulated.generate(greedy([20, 21], 2))


@pytest.mark.parametrize("door", DOORS)
def test_a_service_that_is_not_there(emulated: ClusterUnderTest, door: str) -> None:
    assert raw(emulated, f"{door}Twice", b"") is grpc.StatusCode.UNIMPLEMENTED
