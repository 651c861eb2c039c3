"""Options of the call to a router that serves an HTTP request: its contract, who asks, and its place in a trace."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.http_errors import invalid
from gateway.requests import Generation
from services.contract.body import SloBody, contract_of_body
from services.contract.headers import CONTRACT_HEADERS, caller_of_headers
from services.slo.contract import ContractError
from slos_serve import CallOptions, Contract, Sampling


def call_options(headers: Mapping[str, str], body: Generation, sampling: Sampling, request_id: str) -> CallOptions:
    """Return the options of the call that serves a request.

    The contract in headers goes on as metadata: the router reads it as from any gRPC client, and knows what wins. Who
    asks need not be ASCII, which metadata must be, and becomes part of the message.

    Raises:
        HttpError: 400, with the field or header at fault.
    """
    caller = caller_of_headers(headers)
    return {
        "contract": _contract(body.slo),
        "metadata": {name: _ascii(name, headers[name]) for name in CONTRACT_HEADERS if name in headers},
        "sampling": sampling,
        "request_id": request_id,
        "model": body.model or "",
        "application": caller.application,
        "tenant": caller.tenant,
        "traceparent": headers.get("traceparent", ""),
        "tracestate": headers.get("tracestate", ""),
    }


def _contract(slo: SloBody | None) -> Contract | None:
    if slo is None:
        return None
    try:
        return contract_of_body(slo)
    except ContractError as error:
        raise invalid(error.path, error.detail) from error


def _ascii(name: str, text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise invalid(name, "must be printable ASCII")
    return text
