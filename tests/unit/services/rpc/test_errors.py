"""Errors become a status with details, and every error has exactly one."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.identity.principal import ANYBODY, Principal, Role
from services.rpc.caller import act_for
from services.rpc.errors import (
    NO_WORKERS,
    STATUS_OF,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    PermissionDeniedError,
    QuotaExceededError,
    RequestError,
    UnauthenticatedError,
    abort,
    call_identity,
    reason_of,
    to_status,
)
from tests.support.audit_log import AuditLog


def details(status: status_pb2.Status) -> dict[str, Any]:
    found = {}
    for box in status.details:
        kind = getattr(error_details_pb2, box.TypeName().rpartition(".")[2])()
        assert box.Unpack(kind)
        found[type(kind).__name__] = kind
    return found


def test_every_error_has_a_status_and_a_reason_of_its_own() -> None:
    assert set(STATUS_OF) == set(RequestError.__subclasses__())
    reasons = [reason for _, reason in STATUS_OF.values()]
    assert len(set(reasons)) == len(reasons)
    assert reason_of(NoWorkerError("none")) == "NO_WORKER"


def test_a_status_carries_what_there_is_to_tell() -> None:
    error = InvalidRequestError("too long", field="text", retry_after_s=1.25, metadata={"most": "7"})
    status = to_status(error, "mine")
    assert (status.code, status.message) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "text: too long")
    found = details(status)
    info = found["ErrorInfo"]
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_REQUEST", "slos-serve", {"most": "7"})
    (violation,) = found["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("text", "too long")
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1250
    assert found["RequestInfo"].request_id == "mine"


def test_a_status_carries_nothing_else() -> None:
    assert set(details(to_status(OverloadedError("full")))) == {"ErrorInfo"}


@pytest.mark.parametrize(("retry_after_s", "told_s"), [(0.0, 0.0), (-1.0, 0.0), (0.001, 0.001)])
def test_a_time_to_retry_is_told_even_if_it_is_now(retry_after_s: float, told_s: float) -> None:
    found = details(to_status(OverloadedError("full", retry_after_s=retry_after_s)))
    assert found["RetryInfo"].retry_delay.ToNanoseconds() / 1e9 == told_s


def test_the_identity_of_a_call_names_what_is_known() -> None:
    assert call_identity("mine", "trace") == (("x-request-id", "mine"), ("x-trace-id", "trace"))
    assert call_identity("mine") == (("x-request-id", "mine"),)
    assert call_identity("", "trace") == (("x-trace-id", "trace"),)


class Call:
    """The server's side of one call."""

    def __init__(self) -> None:
        self.ended: tuple[grpc.StatusCode, str, dict[str, str | bytes]] | None = None

    def peer(self) -> str:
        return "ipv4:10.0.0.7:40000"

    async def abort(self, code: grpc.StatusCode, detail: str, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self.ended = (code, detail, dict(metadata))
        raise ConnectionAbortedError


@pytest.mark.parametrize(("request_id", "named"), [("mine", "mine"), ("with blanks", None), ("", None)])
async def test_a_call_ends_with_the_status_and_an_id_that_metadata_can_carry(
    request_id: str, named: str | None
) -> None:
    call = Call()
    with pytest.raises(ConnectionAbortedError):
        await abort(cast("Any", call), NoWorkerError("none is there"), request_id, "trace")
    assert call.ended is not None
    code, detail, metadata = call.ended
    assert (code, detail) == (grpc.StatusCode.UNAVAILABLE, "none is there")
    assert (metadata.get("x-request-id"), metadata["x-trace-id"]) == (named, "trace")
    whole = status_pb2.Status.FromString(cast("bytes", metadata["grpc-status-details-bin"]))
    assert details(whole)["ErrorInfo"].reason == "NO_WORKER"


@pytest.mark.parametrize(
    ("principal", "told"),
    [
        (Principal("ci", "acme", frozenset({Role.CLIENT})), NO_WORKERS),
        (Principal("ops", "", frozenset({Role.OPERATOR})), "prefill-0: serves another model"),
        (ANYBODY, "prefill-0: serves another model"),
    ],
)
async def test_workers_are_named_only_to_who_may_observe_them(principal: Principal, told: str) -> None:
    act_for(principal)
    call = Call()
    try:
        with pytest.raises(ConnectionAbortedError):
            await abort(cast("Any", call), NoWorkerError("prefill-0: serves another model", retry_after_s=3.0), "mine")
    finally:
        act_for(ANYBODY)
    assert call.ended is not None
    code, detail, metadata = call.ended
    assert (code, detail) == (grpc.StatusCode.UNAVAILABLE, told)
    whole = status_pb2.Status.FromString(cast("bytes", metadata["grpc-status-details-bin"]))
    assert details(whole)["RetryInfo"].retry_delay.ToSeconds() == 3
    assert whole.message == told


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (UnauthenticatedError("the key has expired"), "authentication"),
        (PermissionDeniedError("needs the right to operate"), "permission"),
        (QuotaExceededError("concurrent requests", metadata={"quota": "concurrent"}), "quota"),
    ],
)
async def test_who_is_turned_away_is_in_the_audit_log(audit_log: AuditLog, error: RequestError, event: str) -> None:
    act_for(Principal("ci", "acme", frozenset({Role.CLIENT})))
    try:
        with pytest.raises(ConnectionAbortedError):
            await abort(cast("Any", Call()), error, "mine", "trace")
    finally:
        act_for(ANYBODY)
    (line,) = audit_log.lines()
    assert (line["event"], line["outcome"], line["target"]) == (event, "refused", "mine")
    assert (line["who"], line["tenant"], line["peer"]) == ("ci", "acme", "ipv4:10.0.0.7")
    assert (line["detail"], line["trace_id"]) == (error.detail, "trace")


async def test_a_request_that_fails_for_other_reasons_is_not_in_the_audit_log(audit_log: AuditLog) -> None:
    with pytest.raises(ConnectionAbortedError):
        await abort(cast("Any", Call()), NoWorkerError("none is there"), "mine")
    assert audit_log.lines() == []
