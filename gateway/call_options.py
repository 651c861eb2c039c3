"""Options of the call to a router that serves an HTTP request: its contract, who asks, and its place in a trace."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.http_errors import invalid
from gateway.requests import Generation
from services.contract.body import SloBody, contract_of_body
from services.contract.headers import CALLER_HEADERS, CONTRACT_HEADERS, caller_of_headers, check_names, printable
from services.slo.contract import ContractError
from slos_serve import CallOptions, Contract, Sampling

_PASSED_ON = (*CONTRACT_HEADERS, *CALLER_HEADERS)


def call_options(headers: Mapping[str, str], body: Generation, sampling: Sampling, request_id: str) -> CallOptions:
    """Return the options of the call that serves a request.

    The contract and the caller in headers go on as metadata: the router reads them as from any gRPC client, knows what
    wins, and names in errors what the client wrote.

    Raises:
        HttpError: 400, with the field or header at fault.
    """
    contract = _contract(body.slo)
    try:
        check_names(headers)
        caller_of_headers(headers)
        metadata = {name: printable(name, headers[name]) for name in _PASSED_ON if name in headers}
    except ContractError as error:
        raise invalid(error.path, error.detail) from error
    return {
        "contract": contract,
        "metadata": metadata,
        "sampling": sampling,
        "request_id": request_id,
        "model": body.model or "",
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
