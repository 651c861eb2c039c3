"""A gRPC client without any stub of ours, as grpcurl is one: it asks the server for its services and messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

TIMEOUT_S = 60.0


def services_of(channel: grpc.Channel) -> Sequence[str]:
    names: Sequence[str] = ProtoReflectionDescriptorDatabase(channel).get_services()
    return names


def generate_by_reflection(channel: grpc.Channel, text: str, max_tokens: int, **fields: Any) -> list[Any]:
    """Everything that `Generate` streams, as messages made from the server's own descriptors."""
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    method = pool.FindServiceByName("slos_serve.v1.Inference").FindMethodByName("Generate")
    request_type: Any = message_factory.GetMessageClass(method.input_type)
    answer_type: Any = message_factory.GetMessageClass(method.output_type)
    request = request_type(text=text, sampling={"max_tokens": max_tokens, "ignore_eos": True}, **fields)
    call: Any = channel.unary_stream(
        "/slos_serve.v1.Inference/Generate",
        request_serializer=request_type.SerializeToString,
        response_deserializer=answer_type.FromString,
    )
    return list(call(request, timeout=TIMEOUT_S))
