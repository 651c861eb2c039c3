"""The answers to requests that fail, and the one table from errors of a call to HTTP status and OpenAI's error body."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.contract.headers import VERDICT_HEADER
from services.contract.rate_limits import RATE_LIMIT_PREFIX
from slos_serve import (
    DeadlineError,
    DuplicateRequestError,
    EngineFailureError,
    FinishReason,
    ImpossibleContractError,
    InvalidRequestError,
    PermissionDeniedError,
    QuotaExceededError,
    RefusedError,
    RequestCancelledError,
    SlosServeError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnreachableError,
)

INVALID = "invalid_request_error"
MIN_RETRY_MS = 50
"""Milliseconds after which a client is asked back at the earliest, so that it does not ask in a tight loop."""


CHALLENGE = {"www-authenticate": "Bearer"}
"""Header that says how a credential is sent; HTTP demands it of every answer 401."""


class HttpError(Exception):
    """A request is answered with an error status. It is raised anywhere, and answered by the application."""

    def __init__(
        self,
        status: int,
        kind: str,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(param: str | None, message: str, *, code: str = "invalid_value") -> HttpError:
    """Return the answer to a request whose field or header `param` makes no sense."""
    return HttpError(400, INVALID, code, message, param)


def unauthenticated(message: str) -> HttpError:
    """Return the answer to a request without a valid credential, which says how one is sent."""
    return HttpError(401, INVALID, "invalid_api_key", message, headers=CHALLENGE)


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    kind: str
    code: str


TABLE: tuple[tuple[type[SlosServeError], _Row], ...] = (
    (InvalidRequestError, _Row(400, INVALID, "invalid_value")),
    (UnknownModelError, _Row(404, INVALID, "model_not_found")),
    (DuplicateRequestError, _Row(409, INVALID, "duplicate_request_id")),
    (ImpossibleContractError, _Row(400, INVALID, "impossible_contract")),
    (UnauthenticatedError, _Row(401, INVALID, "invalid_api_key")),
    (PermissionDeniedError, _Row(403, INVALID, "permission_denied")),
    (QuotaExceededError, _Row(429, "rate_limit_error", "rate_limit_exceeded")),
    (RefusedError, _Row(429, "rate_limit_error", "contract_refused")),
    (UnreachableError, _Row(502, "server_error", "router_unreachable")),
    (UnavailableError, _Row(503, "server_error", "no_worker")),
    (DeadlineError, _Row(504, "server_error", "deadline_exceeded")),
    (RequestCancelledError, _Row(499, "server_error", "cancelled")),
    (EngineFailureError, _Row(500, "server_error", "engine_failure")),
    (SlosServeError, _Row(500, "server_error", "internal_error")),
)
"""The status of every error of a call; the first row whose type fits counts."""
_UNINTENDED_ENDS = {
    FinishReason.ABORT: (_Row(503, "server_error", "aborted"), "the request was cancelled at the router"),
    FinishReason.ERROR: (
        _Row(500, "server_error", "engine_failure"),
        "the engine could not go on with the request",
    ),
}


def http_error_of(error: SlosServeError) -> HttpError:
    """Return the answer to a request whose call failed.

    `Retry-After` is in whole seconds, at least one and never earlier than the router said; `retry-after-ms` is what
    OpenAI's clients prefer.
    """
    row = next(row for kind, row in TABLE if isinstance(error, kind))
    headers = {VERDICT_HEADER: "refused"} if isinstance(error, RefusedError | ImpossibleContractError) else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(max(MIN_RETRY_MS, math.ceil(error.retry_after_s * 1e3)))
    headers.update((name, value) for name, value in error.metadata.items() if name.startswith(RATE_LIMIT_PREFIX))
    if isinstance(error, RefusedError):
        if error.binding:
            headers["x-slo-binding"] = error.binding.lower()
        for name, seconds in (("ttft", error.predicted_ttft_s), ("tpot", error.predicted_tpot_s)):
            if seconds is not None and math.isfinite(seconds):
                headers[f"x-slo-predicted-{name}-ms"] = f"{seconds * 1e3:.1f}"
    if isinstance(error, UnauthenticatedError):
        headers.update(CHALLENGE)
    # gRPC's own words name the addresses of routers, which are none of a client's business.
    message = "no router answers" if isinstance(error, UnreachableError) else error.detail
    code = error.reason.lower() if isinstance(error, UnavailableError) and error.reason else row.code
    return HttpError(row.status, row.kind, code, message, _param(error.field), headers)


def unintended_end(reason: FinishReason) -> HttpError | None:
    """Return the answer to a request whose text ended where nobody meant it to; None if it ended well.

    A text that is cut short is no success. Only a stream can show it as far as it got.
    """
    end = _UNINTENDED_ENDS.get(reason)
    return None if end is None else HttpError(end[0].status, end[0].kind, end[0].code, end[1])


_PARAMS = (
    (re.compile(r"^sampling\."), ""),
    # Of prefill targets none but a TTFT can be impossible, and nothing else is wrong with one that passed `SloBody`.
    (re.compile(r"^contract\.stages\[0\]\.prefill$"), "slo.ttft_ms"),
    (re.compile(r"^contract\b"), "slo"),
    (re.compile(r"^text$"), "prompt"),
    (re.compile(r"^token_ids(\.ids)?"), "prompt"),
    (re.compile(r"^chat\.messages"), "messages"),
    (re.compile(r"^chat$"), "messages"),
)


def _param(path: str) -> str | None:
    """Return the name that a field of the protocol has in HTTP; headers have the same at both."""
    for pattern, name in _PARAMS:
        path, changed = pattern.subn(name, path)
        if changed:
            break
    return path or None
