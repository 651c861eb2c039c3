"""Every error of a call has one HTTP status, and tells when to ask again in the two units clients read."""

from __future__ import annotations

import grpc
import pytest

from gateway.http_errors import MIN_RETRY_MS, http_error_of
from slos_serve import (
    DeadlineError,
    InvalidRequestError,
    PermissionDeniedError,
    QuotaExceededError,
    RefusedError,
    RequestCancelledError,
    SlosServeError,
    UnauthenticatedError,
    UnavailableError,
    UnreachableError,
)
from slos_serve.errors import Failure as CallFailure


def call_failure(reason: str = "", **more: object) -> CallFailure:
    return CallFailure(grpc.StatusCode.UNKNOWN, "what went wrong", reason, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("retry_after_s", "seconds", "milliseconds"),
    [(0.0, 1, MIN_RETRY_MS), (0.0499, 1, 50), (0.0511, 1, 52), (1.0, 1, 1000), (1.2, 2, 1200), (7.0001, 8, 7001)],
)
def test_nobody_is_asked_back_earlier_than_the_router_said(
    retry_after_s: float, seconds: int, milliseconds: int
) -> None:
    headers = http_error_of(UnavailableError(call_failure(retry_after_s=retry_after_s))).headers
    assert headers == {"retry-after": str(seconds), "retry-after-ms": str(milliseconds)}


def test_without_a_time_there_is_none_to_tell() -> None:
    assert http_error_of(UnavailableError(call_failure())).headers == {}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnavailableError(call_failure()), 503, "no_worker"),
        (UnavailableError(call_failure("WORKER_LOST")), 503, "worker_lost"),
        (DeadlineError(call_failure("SOME_REASON")), 504, "deadline_exceeded"),
        (RequestCancelledError(call_failure()), 499, "cancelled"),
        (SlosServeError(call_failure()), 500, "internal_error"),
    ],
)
def test_status_and_code_of_an_error(error: SlosServeError, status: int, code: str) -> None:
    failure = http_error_of(error)
    assert failure.status == status
    assert failure.body == {
        "error": {"message": "what went wrong", "type": "server_error", "param": None, "code": code}
    }


def test_an_error_of_the_connection_does_not_name_the_router() -> None:
    failure = http_error_of(UnreachableError(call_failure()))
    assert (failure.status, failure.body["error"]["code"]) == (502, "router_unreachable")
    assert failure.body["error"]["message"] == "no router answers"


def test_who_is_not_known_is_told_how_to_say_who_it_is() -> None:
    failure = http_error_of(UnauthenticatedError(call_failure("UNAUTHENTICATED")))
    assert (failure.status, failure.body["error"]["code"]) == (401, "invalid_api_key")
    assert failure.headers == {"www-authenticate": "Bearer"}
    failure = http_error_of(PermissionDeniedError(call_failure("PERMISSION_DENIED")))
    assert (failure.status, failure.body["error"]["code"]) == (403, "permission_denied")
    assert failure.headers == {}


def test_a_quota_that_is_used_up_is_told_as_rate_limiters_do() -> None:
    metadata = {"quota": "requests_per_s", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "4s"}
    error = QuotaExceededError(call_failure("QUOTA_EXCEEDED", metadata=metadata, retry_after_s=0.4))
    failure = http_error_of(error)
    assert failure.status == 429
    assert failure.body["error"]["code"] == "rate_limit_exceeded"
    assert failure.headers == {
        "x-slo-verdict": "refused",
        "retry-after": "1",
        "retry-after-ms": "400",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "4s",
    }


def test_a_refusal_tells_what_binds_and_what_was_expected() -> None:
    metadata = {"binding": "KV_MEMORY", "predicted_ttft_s": "0.25", "predicted_tpot_s": "0.0312"}
    failure = http_error_of(RefusedError(call_failure("OVERLOADED", metadata=metadata)))
    assert failure.status == 429
    assert failure.headers == {
        "x-slo-verdict": "refused",
        "x-slo-binding": "kv_memory",
        "x-slo-predicted-ttft-ms": "250.0",
        "x-slo-predicted-tpot-ms": "31.2",
    }


def test_what_was_expected_is_left_out_where_there_is_no_figure() -> None:
    failure = http_error_of(RefusedError(call_failure("OVERLOADED", metadata={"predicted_ttft_s": "inf"})))
    assert failure.headers == {"x-slo-verdict": "refused"}


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("sampling.top_p", "top_p"),
        ("contract.stages[1].decode.tpot_s", "slo.stages[1].decode.tpot_s"),
        ("contract", "slo"),
        ("text", "prompt"),
        ("token_ids.ids[3]", "prompt[3]"),
        ("token_ids", "prompt"),
        ("chat.messages[0].role", "messages[0].role"),
        ("chat", "messages"),
        ("model", "model"),
        ("", None),
    ],
)
def test_a_field_goes_by_its_name_in_http(field: str, param: str | None) -> None:
    assert http_error_of(InvalidRequestError(call_failure(field=field))).body["error"]["param"] == param
