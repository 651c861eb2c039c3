"""The table of all errors: gRPC status and reason, HTTP status and code, the Python exception, and what to do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from cli.reference.page import table
from gateway.http_errors import http_error_of
from services.rpc.errors import STATUS_OF, RequestError
from slos_serve.errors import BY_REASON, Failure

WHAT_TO_DO: Mapping[str, str] = {
    "INVALID_REQUEST": "Correct the field that `param` (gRPC: `BadRequest`) names. Do not retry.",
    "UNKNOWN_MODEL": "Leave `model` out, or name one that `GET /v1/models` lists.",
    "DUPLICATE_REQUEST_ID": "Choose a new request id for every request; the old one is free again "
    "`redis.journal_ttl_s` after its request ended. The gateway makes ids unique, so that only gRPC clients see this.",
    "UNKNOWN_REQUEST_ID": "The request to cancel has ended already. Nothing is left to do.",
    "IMPOSSIBLE_CONTRACT": "Loosen the target; the message says what an idle worker needs. Waiting does not help.",
    "OVERLOADED": "Send it again after the time in `retry-after-ms` (gRPC: `RetryInfo`), loosen the contract, or ask "
    "for best effort. `x-slo-binding` says what is short.",
    "UNAUTHENTICATED": "Send a valid API key or token: `authorization: Bearer ...`, in gRPC metadata or HTTP headers.",
    "PERMISSION_DENIED": "Use a credential with the right that the message names, or ask an operator.",
    "QUOTA_EXCEEDED": "Send it again after the time in `retry-after-ms` (gRPC: `RetryInfo`), or ask an operator for "
    "more of the quota that is named.",
    "NO_WORKER": "Send it again after the time named. If it lasts, `slos-serve status` says which worker is missing.",
    "CANCELLED": "Somebody cancelled it. Nothing is left to do.",
    "WORKER_LOST": "Send it again. More workers than `router.max_restarts` died under it: look at their logs.",
    "DRAINING": "Send it again, to another router if there is one; this one is shutting down.",
    "SESSION_REPLACED": "Only routers see this: a newer session of the same router has taken over.",
    "ENGINE_FAILURE": "Send it once more; if it fails again, the worker's log says why.",
    "PLANNING_FAILED": "Send it once more, and report it: this is a defect of the router. Its log has the traceback.",
}
"""What the one who gets an error does about it, by reason."""

NEVER_HTTP = frozenset({"UNKNOWN_REQUEST_ID", "SESSION_REPLACED"})
"""Reasons of calls that no gateway makes: it has no endpoint that cancels, and no session with a worker."""

ONLY_HTTP: tuple[tuple[int, str, str, str], ...] = (
    (400, "invalid_json", "The body is no JSON.", "Correct the body."),
    (400, "missing_required_parameter", "A field that must be there is not.", "Add the field that `param` names."),
    (400, "invalid_type", "A field has the wrong type, or `slo` has a field that does not exist.", "Correct `param`."),
    (400, "unsupported_value", "OpenAI has this feature, this server does not.", "Leave out what `param` names."),
    (
        400,
        "unknown_parameter",
        "A field of the body was meant for the contract, and is misspelt or stands beside `slo`.",
        "Write the contract below `slo`.",
    ),
    (400, "body_too_complex", "The JSON of the body has too many values or unknown fields.", "Send fewer."),
    (404, "not_found", "No such path.", "See [HTTP](http.md) for the paths."),
    (405, "not_found", "The path knows no such method; a browser's preflight (`OPTIONS`) ends here.", "See above."),
    (408, "body_timeout", "The body did not arrive within `gateway.body_timeout_s`.", "Send it again."),
    (413, "body_too_large", "The body is larger than `gateway.max_body_bytes`.", "Send less."),
    (499, "cancelled", "The client left before it was answered. Only logs and metrics show it.", "Nothing."),
    (500, "internal_error", "A defect of the gateway or the router.", "Report it; the log has the traceback."),
    (502, "router_unreachable", "No router answers the gateway.", "Send it again later; is the router running?"),
    (503, "aborted", "Somebody cancelled the request at the router.", "Nothing."),
    (504, "deadline_exceeded", "The deadline of the call has passed.", "Allow more time, or ask for less."),
)
"""HTTP errors that no router tells: status, code, when, and what to do."""


def error_table() -> str:
    """Write the table of the errors that a router answers with."""
    rows = []
    for kind, (code, reason) in STATUS_OF.items():
        status, http_code = _http(kind)
        python = f"`{BY_REASON[reason].__name__}`" if reason in BY_REASON else ""
        when = inspect.cleandoc(kind.__doc__ or "")
        rows.append((f"`{reason}`", f"`{code.name}`", status, http_code, python, when, WHAT_TO_DO[reason]))
    return table(("reason", "gRPC status", "HTTP", "`code` in HTTP", "Python", "when", "what to do"), rows)


def http_only_table() -> str:
    """Write the table of the errors that only the gateway answers with."""
    return table(
        ("HTTP", "`code`", "when", "what to do"),
        [(str(status), f"`{code}`", when, action) for status, code, when, action in ONLY_HTTP],
    )


def _http(kind: type[RequestError]) -> tuple[str, str]:
    """Return the status and the code with which a gateway passes an error of a router on."""
    code, reason = STATUS_OF[kind]
    if reason in NEVER_HTTP:
        return "", ""
    answer = http_error_of(BY_REASON[reason](Failure(code, "", reason=reason)))
    return str(answer.status), f"`{answer.body['error']['code']}`"
