"""The errors that a client can get, and the one table that maps them to gRPC statuses with google.rpc details."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.audit import EventKind, Outcome, note
from services.identity.principal import Right
from services.network.address import peer_host
from services.rpc.caller import caller
from services.shown import clipped

ERROR_DOMAIN = "slos-serve"
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
MAX_DETAIL_CHARACTERS = 1000
"""Characters of an error's text at most: a status travels in metadata, for which clients take 8 KiB by default."""
NO_WORKERS = "no workers that could serve a request are connected"
"""The reason why nothing can be served, for clients, who are not told which workers there are."""
REQUEST_ID_METADATA, TRACE_ID_METADATA = "x-request-id", "x-trace-id"


class RequestError(Exception):
    """A request cannot be served. Subclasses say why; `detail` is written for the client."""

    def __init__(
        self,
        detail: str,
        *,
        field: str = "",
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        detail = clipped(detail, MAX_DETAIL_CHARACTERS)
        super().__init__(f"{field}: {detail}" if field else detail)
        self.detail = detail
        self.field = field
        """Path of the request's field at fault, as the client wrote it; empty if no single field is."""
        self.retry_after_s = retry_after_s
        """Seconds until the same request may succeed; None if it is not to be sent again."""
        self.metadata = dict(metadata or {})


class InvalidRequestError(RequestError):
    """A field holds what it must not; the same request will never succeed."""


class UnknownModelError(RequestError):
    """The model is not served here."""


class DuplicateRequestError(RequestError):
    """The request id is, or was lately, in use."""


class UnknownRequestError(RequestError):
    """No running request has this id."""


class ImpossibleContractError(RequestError):
    """Not even an idle worker could keep the contract."""


class OverloadedError(RequestError):
    """The contract cannot be guaranteed now, and it asks to be refused then; or the queue is full."""


class NoWorkerError(RequestError):
    """No worker that could serve the request is there.

    Its detail may name workers, and `abort` tells it only to callers that may observe the cluster.
    """


class CancelledRequestError(RequestError):
    """The request was cancelled before there was anything to stream."""


class WorkerLostError(RequestError):
    """Workers were lost under the request more often than it may be started again."""


class UnauthenticatedError(RequestError):
    """The call carries no credential, or one that is not, or no longer, valid."""


class PermissionDeniedError(RequestError):
    """The caller is known and may not do this."""


class QuotaExceededError(RequestError):
    """The caller's tenant has used up one of its quotas; `metadata` names it."""


class DrainingError(RequestError):
    """This server is shutting down."""


class SessionReplacedError(RequestError):
    """Another session of the router with this worker has taken the place of this one."""


class EngineFailureError(RequestError):
    """An engine failed on this request."""


class PlanningFailedError(RequestError):
    """The round that was to decide about the request broke off, because of a defect of the router."""


STATUS_OF: Mapping[type[RequestError], tuple[grpc.StatusCode, str]] = {
    InvalidRequestError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    UnknownModelError: (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"),
    DuplicateRequestError: (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST_ID"),
    UnknownRequestError: (grpc.StatusCode.NOT_FOUND, "UNKNOWN_REQUEST_ID"),
    ImpossibleContractError: (grpc.StatusCode.FAILED_PRECONDITION, "IMPOSSIBLE_CONTRACT"),
    OverloadedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    NoWorkerError: (grpc.StatusCode.UNAVAILABLE, "NO_WORKER"),
    CancelledRequestError: (grpc.StatusCode.CANCELLED, "CANCELLED"),
    WorkerLostError: (grpc.StatusCode.UNAVAILABLE, "WORKER_LOST"),
    UnauthenticatedError: (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    PermissionDeniedError: (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    QuotaExceededError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    DrainingError: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    SessionReplacedError: (grpc.StatusCode.ABORTED, "SESSION_REPLACED"),
    EngineFailureError: (grpc.StatusCode.INTERNAL, "ENGINE_FAILURE"),
    PlanningFailedError: (grpc.StatusCode.INTERNAL, "PLANNING_FAILED"),
}


AUDITED: Mapping[type[RequestError], EventKind] = {
    UnauthenticatedError: EventKind.AUTHENTICATION,
    PermissionDeniedError: EventKind.PERMISSION,
    QuotaExceededError: EventKind.QUOTA,
}
"""Errors that the audit log tells, whichever call they end."""


def reason_of(error: RequestError) -> str:
    """Return the name that an error has in `google.rpc.ErrorInfo`."""
    return STATUS_OF[type(error)][1]


def to_status(error: RequestError, request_id: str = "") -> status_pb2.Status:
    """Return the google.rpc.Status of an error: ErrorInfo, and BadRequest, RetryInfo and RequestInfo if they apply."""
    code, reason = STATUS_OF[type(error)]
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=error.metadata),
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.detail)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(max(0.0, error.retry_after_s) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    return status_pb2.Status(code=code_pb2.Code.Value(code.name), message=str(error), details=packed)


def call_identity(request_id: str, trace_id: str = "") -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata by which a client finds its request again, in the logs and in a trace."""
    named = ((REQUEST_ID_METADATA, request_id), (TRACE_ID_METADATA, trace_id))
    return tuple((name, value) for name, value in named if value)


async def abort(
    context: grpc.aio.ServicerContext[Message, Message],
    error: RequestError,
    request_id: str = "",
    trace_id: str = "",
    *,
    refused: str = "",
    cause: str = "",
) -> NoReturn:
    """End the call with the status of `error`, less what the caller may not know. This never returns.

    Args:
        refused: what the audit log names as refused where there is no request id, such as a method.
        cause: why, for the audit log alone, if the caller is told less.
    """
    if isinstance(error, NoWorkerError) and not caller().may(Right.OBSERVE):
        error = NoWorkerError(NO_WORKERS, retry_after_s=error.retry_after_s)
    # What a client sends as its id may be no text that metadata can carry.
    request_id = request_id if REQUEST_ID.fullmatch(request_id) else ""
    if (kind := AUDITED.get(type(error))) is not None:
        note(
            kind,
            Outcome.REFUSED,
            request_id or refused,
            who=caller(),
            peer=peer_host(context.peer()),
            detail=cause or str(error),
            trace_id=trace_id,
        )
    # What has the name of a header is also there for those who do not read the details of a status.
    headers = ((name, value) for name, value in error.metadata.items() if name.startswith("x-"))
    identity = call_identity(request_id, trace_id)
    status = rpc_status.to_status(to_status(error, request_id))
    await context.abort(status.code, status.details, (*(status.trailing_metadata or ()), *headers, *identity))
    raise AssertionError("abort returned")
