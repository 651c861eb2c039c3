"""Errors are typed: every error of the server has its class, and one of a later server goes by its code."""

from __future__ import annotations

import grpc
import pytest

from services.rpc import errors as server
from slos_serve import (
    DuplicateRequestError,
    EngineFailureError,
    ImpossibleContractError,
    InvalidRequestError,
    NoWorkerError,
    PermissionDeniedError,
    QuotaExceededError,
    RefusedError,
    RequestCancelledError,
    SlosServeError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnknownRequestError,
    UnreachableError,
)
from slos_serve.errors import BY_REASON, error_of

EXPECTED = {
    server.InvalidRequestError: InvalidRequestError,
    server.UnknownModelError: UnknownModelError,
    server.DuplicateRequestError: DuplicateRequestError,
    server.UnknownRequestError: UnknownRequestError,
    server.ImpossibleContractError: ImpossibleContractError,
    server.OverloadedError: RefusedError,
    server.QuotaExceededError: QuotaExceededError,
    server.UnauthenticatedError: UnauthenticatedError,
    server.PermissionDeniedError: PermissionDeniedError,
    server.NoWorkerError: NoWorkerError,
    server.CancelledRequestError: RequestCancelledError,
    server.WorkerLostError: UnavailableError,
    server.DrainingError: UnavailableError,
    server.EngineFailureError: EngineFailureError,
    server.PlanningFailedError: SlosServeError,
}
INTERNAL = {server.SessionReplacedError}


def typed(error: server.RequestError) -> SlosServeError:
    status = server.to_status(error, "r-1")
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return error_of(code, status.message, [("grpc-status-details-bin", status.SerializeToString())])


@pytest.mark.parametrize("kind", sorted(server.STATUS_OF.keys() - INTERNAL, key=str))
def test_every_error_of_the_server_has_its_type(kind: type[server.RequestError]) -> None:
    error = typed(kind("the detail", field="some.field", retry_after_s=1.5, metadata={"binding": "KV_MEMORY"}))
    assert type(error) is EXPECTED[kind]
    assert BY_REASON[server.STATUS_OF[kind][1]] is EXPECTED[kind]
    assert (error.field, error.retry_after_s, error.request_id) == ("some.field", 1.5, "r-1")
    assert error.detail == "the detail"
    assert str(error).endswith("some.field: the detail")


def test_a_refusal_says_what_binds() -> None:
    refused = typed(
        server.OverloadedError("full", retry_after_s=2.0, metadata={"binding": "X", "predicted_ttft_s": "0.25"})
    )
    assert isinstance(refused, RefusedError)
    assert (refused.binding, refused.predicted_ttft_s, refused.predicted_tpot_s) == ("X", 0.25, None)
    assert refused.field == ""


def test_a_status_without_details_goes_by_its_code() -> None:
    assert type(error_of(grpc.StatusCode.UNAVAILABLE, "no route", ())) is UnreachableError
    assert type(error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", ())) is InvalidRequestError
    assert type(error_of(grpc.StatusCode.DATA_LOSS, "?", ())) is SlosServeError
    garbled = error_of(grpc.StatusCode.INTERNAL, "?", [("grpc-status-details-bin", b"\xff\xff\xff")])
    assert type(garbled) is SlosServeError


def test_a_reason_of_a_later_server_goes_by_its_code() -> None:
    status = server.to_status(server.OverloadedError("x", retry_after_s=1.0))
    boxed = status.SerializeToString().replace(b"OVERLOADED", b"OVERLOADEZ")
    error = error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "x", [("grpc-status-details-bin", boxed)])
    assert type(error) is RefusedError
    assert error.reason == "OVERLOADEZ"
