"""The table of rights names every method that a router serves."""

from __future__ import annotations

from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from smg_grpc_proto import vllm_engine_pb2

from router.api.rights import ROUTER_RIGHTS
from services.identity.principal import Right
from slos_serve.v1 import inference_pb2

FILES = (inference_pb2, vllm_engine_pb2, health_pb2, reflection_pb2, channelz_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_the_table_names_methods_that_exist() -> None:
    assert set(ROUTER_RIGHTS) <= METHODS


def test_every_method_of_ours_is_in_the_table() -> None:
    ours = {name for name in METHODS if name.startswith("/slos_serve.v1.")}
    assert ours <= set(ROUTER_RIGHTS)


def test_only_health_and_reflection_are_open() -> None:
    open_ones = {name for name, needed in ROUTER_RIGHTS.items() if needed is None}
    assert {name.split("/")[1] for name in open_ones} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_no_call_needs_no_right() -> None:
    assert all(needed is None or needed for needed in ROUTER_RIGHTS.values())
    assert ROUTER_RIGHTS["/slos_serve.v1.Inference/Generate"] == frozenset({Right.GENERATE})
