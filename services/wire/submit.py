"""Conversion of requests that a router submits to a worker."""

from __future__ import annotations

from services.engine.protocol import EngineRequest
from services.wire.error import WireError, finite
from services.wire.kv import kv_handle_from_wire, kv_handle_to_wire
from services.wire.sampling import sampling_from_wire, sampling_to_wire
from slos_serve.v1 import worker_pb2

MAX_SALT_CHARACTERS = 128
"""Length of the longest salt that is taken; a router's have 32 characters."""


def submit_to_wire(
    request: EngineRequest, attempt: int, traceparent: str = "", tracestate: str = ""
) -> worker_pb2.Submit:
    """Build the submission of a request.

    Args:
        request: the request under the client's request id.
    """
    return worker_pb2.Submit(
        request_id=request.request_id,
        attempt=attempt,
        token_ids=request.token_ids,
        generated_tokens=request.generated_tokens,
        sampling=sampling_to_wire(request.sampling),
        export_kv=request.export_kv,
        kv_source=None if request.kv_source is None else kv_handle_to_wire(request.kv_source),
        deadline_in_s=request.deadline_in_s,
        tpot_s=request.tpot_s,
        best_effort=request.best_effort,
        traceparent=traceparent,
        tracestate=tracestate,
        application=request.application,
        cache_salt=request.cache_salt,
    )


def submit_from_wire(message: worker_pb2.Submit, engine_request_id: str) -> EngineRequest:
    """Read a submission as a request for the engine.

    Raises:
        WireError: a field holds what no engine could take.
    """
    if not message.token_ids:
        raise WireError("token_ids", "must not be empty")
    if not 0 <= message.generated_tokens < len(message.token_ids):
        raise WireError(
            "generated_tokens",
            f"must leave a prompt of {len(message.token_ids)} tokens; got {message.generated_tokens}",
        )
    if len(message.cache_salt) > MAX_SALT_CHARACTERS:
        raise WireError("cache_salt", f"at most {MAX_SALT_CHARACTERS} characters; got {len(message.cache_salt)}")
    sampling = sampling_from_wire(message.sampling)
    if message.generated_tokens >= sampling.max_tokens:
        raise WireError(
            "sampling.max_tokens", f"{message.generated_tokens} of {sampling.max_tokens} tokens are generated already"
        )
    if message.export_kv and message.HasField("kv_source"):
        raise WireError("kv_source", "a request that exports its KV cache computes it")
    return EngineRequest(
        request_id=engine_request_id,
        token_ids=tuple(message.token_ids),
        generated_tokens=message.generated_tokens,
        sampling=sampling,
        export_kv=message.export_kv,
        kv_source=kv_handle_from_wire(message.kv_source) if message.HasField("kv_source") else None,
        deadline_in_s=finite("deadline_in_s", message.deadline_in_s) if message.HasField("deadline_in_s") else None,
        tpot_s=finite("tpot_s", message.tpot_s) if message.HasField("tpot_s") else None,
        best_effort=message.best_effort,
        application=message.application,
        cache_salt=message.cache_salt,
    )
