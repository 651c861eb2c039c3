"""A gRPC status with its details, in words."""

from __future__ import annotations

from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def explain(error: grpc.RpcError) -> str:
    """Code, message, and when to retry."""
    # Every error of a call is a call as well; the stubs do not say so.
    call = cast("grpc.Call", error)
    text = f"{call.code().name}: {call.details()}"
    status = rpc_status.from_call(call)
    for detail in status.details if status is not None else ():
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            text += f"; retry in {retry.retry_delay.ToTimedelta().total_seconds():.1f} s"
    return text
