"""The errors of calls, typed by the `google.rpc.ErrorInfo` of their status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as default

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

STATUS_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Failure:
    """A call ended with this gRPC status, whose details are unpacked here."""

    code: grpc.StatusCode
    detail: str
    reason: str = ""
    """Reason in its ErrorInfo; empty if no server of the cluster made this status."""
    field: str = ""
    retry_after_s: float | None = None
    request_id: str = ""
    metadata: Mapping[str, str] = default(default_factory=dict)


class SlosServeError(Exception):
    """A call failed. Subclasses say how; what none of them fits is of this class itself."""

    def __init__(self, failure: Failure) -> None:
        path = f"{failure.field}: " if failure.field else ""
        super().__init__(f"{failure.reason or failure.code.name}: {path}{failure.detail}")
        self.code = failure.code
        self.detail = failure.detail
        """Description of what went wrong, in words."""
        self.reason = failure.reason
        """Name that the server gives the error, in capitals; empty if the call never reached a router."""
        self.field = failure.field
        """Path of the request's field at fault; empty if no single field is."""
        self.retry_after_s = failure.retry_after_s
        """Seconds until the same request may succeed; None if it is not to be sent again."""
        self.request_id = failure.request_id
        self.metadata = failure.metadata
        """Further facts that the server tells, by name."""


class InvalidRequestError(SlosServeError):
    """A field holds what it must not; the same request will never succeed."""


class UnknownModelError(SlosServeError):
    """The model is not served here."""


class DuplicateRequestError(SlosServeError):
    """The request id is, or was lately, in use."""


class UnknownRequestError(SlosServeError):
    """No running request has this id."""


class ImpossibleContractError(SlosServeError):
    """Not even an idle worker could keep the contract, and it asks to be refused then."""


class RefusedError(SlosServeError):
    """The contract cannot be guaranteed now and asks to be refused then, or the queue is full."""

    @property
    def binding(self) -> str:
        """Return the resource that keeps the contract from being guaranteed, in capitals; empty if unknown."""
        return self.metadata.get("binding", "")

    @property
    def predicted_ttft_s(self) -> float | None:
        """Return the TTFT in seconds that was expected without a guarantee; None if unknown."""
        return _number(self.metadata.get("predicted_ttft_s"))

    @property
    def predicted_tpot_s(self) -> float | None:
        """Return the TPOT in seconds that was expected without a guarantee; None if unknown."""
        return _number(self.metadata.get("predicted_tpot_s"))


class QuotaExceededError(RefusedError):
    """The caller's tenant has used up one of its quotas."""

    @property
    def quota(self) -> str:
        """Return the name of the quota; empty if unknown."""
        return self.metadata.get("quota", "")


class UnauthenticatedError(SlosServeError):
    """The call carried no credential, or one that is not, or no longer, valid."""


class PermissionDeniedError(SlosServeError):
    """The caller is known and may not do this."""


class UnavailableError(SlosServeError):
    """Nobody could serve it: workers were lost under it too often, or the router shuts down."""


class NoWorkerError(UnavailableError):
    """No worker that could serve the request is there."""


class UnreachableError(UnavailableError):
    """No router answers at any of the addresses, or the connection broke."""


class EngineFailureError(SlosServeError):
    """An engine failed on this request."""


class DeadlineError(SlosServeError):
    """The call's own deadline passed."""


class RequestCancelledError(SlosServeError):
    """The call was cancelled by somebody else than its owner."""


BY_REASON: Mapping[str, type[SlosServeError]] = {
    "INVALID_REQUEST": InvalidRequestError,
    "UNKNOWN_MODEL": UnknownModelError,
    "DUPLICATE_REQUEST_ID": DuplicateRequestError,
    "UNKNOWN_REQUEST_ID": UnknownRequestError,
    "IMPOSSIBLE_CONTRACT": ImpossibleContractError,
    "OVERLOADED": RefusedError,
    "QUOTA_EXCEEDED": QuotaExceededError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "NO_WORKER": NoWorkerError,
    "CANCELLED": RequestCancelledError,
    "WORKER_LOST": UnavailableError,
    "DRAINING": UnavailableError,
    "ENGINE_FAILURE": EngineFailureError,
    "PLANNING_FAILED": SlosServeError,
}
BY_CODE: Mapping[grpc.StatusCode, type[SlosServeError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: DuplicateRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: ImpossibleContractError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RefusedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
}
WITHOUT_INFO: Mapping[grpc.StatusCode, type[SlosServeError]] = {
    grpc.StatusCode.UNAVAILABLE: UnreachableError,
    # gRPC itself refuses a message over its limit with this code, before a router sees it.
    grpc.StatusCode.RESOURCE_EXHAUSTED: InvalidRequestError,
}


def error_of(
    code: grpc.StatusCode, detail: str, trailing_metadata: Iterable[tuple[str, str | bytes]]
) -> SlosServeError:
    """Return the error of a call that ended with this status. A reason that is unknown here goes by its code."""
    failure = _failure(code, detail, trailing_metadata)
    kind = BY_CODE.get(code, SlosServeError)
    kind = BY_REASON.get(failure.reason, kind) if failure.reason else WITHOUT_INFO.get(code, kind)
    return kind(failure)


def _failure(code: grpc.StatusCode, detail: str, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> Failure:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    violations, about = error_details_pb2.BadRequest(), error_details_pb2.RequestInfo()
    retry_after_s: float | None = None
    for box in _details(trailing_metadata):
        for kind in (info, violations, about):
            box.Unpack(kind)
        if box.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    named = violations.field_violations
    return Failure(
        code=code,
        detail=named[0].description or detail if named else detail,
        reason=info.reason,
        field=named[0].field if named else "",
        retry_after_s=retry_after_s,
        request_id=about.request_id,
        metadata=dict(info.metadata),
    )


def _details(trailing_metadata: Iterable[tuple[str, str | bytes]]) -> list[any_pb2.Any]:
    for name, value in trailing_metadata:
        if name == STATUS_DETAILS and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                # Written by something between us and the router; the code and the words are still there.
                return []
    return []


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
