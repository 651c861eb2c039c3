"""Headers of every answer of the console, and its answer to what it does not serve."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from router.observability.console.documents import encoded

JSON = "application/json"
HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def problem(status: int, what: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer that says in JSON what is wrong."""
    return Response(encoded({"error": what}), status, {**HEADERS, **(headers or {})}, JSON)
