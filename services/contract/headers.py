"""Contracts and callers in headers of HTTP, or in the metadata of a gRPC call, which have the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import slos_serve
from services.contract.terms import ON_OVERLOAD, PROFILE, TPOT, TTFT, Term
from services.shown import clipped
from services.slo.contract import MAX_NAME_CHARACTERS, ContractError, DecodeTarget, PrefillTarget

APPLICATION_HEADER = "x-slo-application"
TENANT_HEADERS = ("x-tenant-id", "x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
CONTRACT_HEADERS = tuple(name for term in (PROFILE, TTFT, TPOT, ON_OVERLOAD) for name in term.headers)
"""Names of all headers that `contract_of_headers` reads."""
CALLER_HEADERS = (APPLICATION_HEADER, *TENANT_HEADERS)
"""Names of all headers that `caller_of_headers` reads."""
OWN_PREFIXES = ("x-slo", "x-llm-d-slo")
"""Beginnings of names that only these headers have: a name that is not known is a misspelt one."""
VERDICT_HEADER = "x-slo-verdict"
"""Name of the verdict, which is in lower case, in an HTTP answer and in initial metadata of vLLM's protocol."""
_OWN_NAMES = tuple(name for name in (*CONTRACT_HEADERS, APPLICATION_HEADER) if name.startswith(OWN_PREFIXES))


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request as headers name it; a field is empty if they do not."""

    application: str
    tenant: str


def check_names(names: Iterable[str]) -> None:
    """Refuse a misspelt header, which would promise nothing and say nothing.

    Args:
        names: names of headers in lower case.

    Raises:
        ContractError: a header has a name of this family that is not known; the path is its name.
    """
    for name in names:
        if name.startswith(OWN_PREFIXES) and name not in _OWN_NAMES:
            raise ContractError(clipped(name, MAX_NAME_CHARACTERS), f"no such header; known: {', '.join(_OWN_NAMES)}")


def caller_of_headers(headers: Mapping[str, str]) -> Caller:
    """Return who asks, as far as headers say it.

    Raises:
        ContractError: a header makes no sense; the path is its name.
    """
    return Caller(_caller(headers, (APPLICATION_HEADER,)), _caller(headers, TENANT_HEADERS))


def tenant_header(headers: Mapping[str, str]) -> str:
    """Return the name of the header that names the tenant, for errors about it; empty if none does."""
    return _name(headers, TENANT_HEADERS) or ""


def contract_of_headers(headers: Mapping[str, str]) -> slos_serve.Contract:
    """Return the contract that headers ask for, with everything unset that they do not name.

    Raises:
        ContractError: a header makes no sense; the path is its name.
    """
    ttft_s, tpot_s = _seconds(headers, TTFT, PrefillTarget), _seconds(headers, TPOT, DecodeTarget)
    return slos_serve.Contract(
        profile=_text(headers, PROFILE.headers),
        prefill=None if ttft_s is None else slos_serve.PrefillTarget(ttft_s),
        decode=() if tpot_s is None else (slos_serve.DecodeTarget(tpot_s),),
        on_overload=_on_overload(headers),
    )


def contract_headers(contract: slos_serve.Contract) -> dict[str, str]:
    """Return the headers that ask for a contract. No header asks for a slowdown, several stages or a session."""
    return {
        **({PROFILE.headers[0]: contract.profile} if contract.profile else {}),
        **target_headers(contract),
        **({} if contract.on_overload is None else {ON_OVERLOAD.headers[0]: contract.on_overload.name.lower()}),
    }


def target_headers(contract: slos_serve.Contract) -> dict[str, str]:
    """Return the TTFT of a contract and the tightest of its TPOTs, as far as it has them."""
    headers = {}
    if contract.prefill is not None and contract.prefill.ttft_s is not None:
        headers[TTFT.headers[0]] = _figure(contract.prefill.ttft_s, TTFT)
    if contract.decode:
        headers[TPOT.headers[0]] = _figure(min(target.tpot_s for target in contract.decode), TPOT)
    return headers


def _figure(value: float, term: Term) -> str:
    """Return a figure of a contract as a header shows it: microseconds are left."""
    return f"{round(value * term.per_unit, 3)}"


def _name(headers: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """Return the first of these names that is there; None if none is."""
    return next((name for name in names if name in headers), None)


def _caller(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    name = _name(headers, names)
    if name is None:
        return ""
    text = headers[name]
    if len(text) > MAX_NAME_CHARACTERS:
        raise ContractError(name, f"at most {MAX_NAME_CHARACTERS} characters; got {len(text)}")
    return printable(name, text)


def printable(name: str, text: str) -> str:
    """Return the text of a header that metadata can carry.

    Raises:
        ContractError: it is no such text; the path is the name of the header.
    """
    if not (text.isascii() and text.isprintable()):
        raise ContractError(name, "must be printable ASCII")
    return text


def _text(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    name = _name(headers, names)
    return "" if name is None else headers[name]


def _seconds(headers: Mapping[str, str], term: Term, check: Callable[[float], object]) -> float | None:
    """Return a time in seconds; None if no header names it.

    Args:
        check: raises a ContractError if no contract can hold this time.
    """
    name = _name(headers, term.headers)
    if name is None:
        return None
    text = clipped(headers[name])
    try:
        seconds = float(headers[name]) / term.per_unit
    except ValueError:
        raise ContractError(name, f"{text!r} is no number of milliseconds") from None
    try:
        check(seconds)
    except ContractError as error:
        raise error.renamed(name, text) from error
    return seconds


def _on_overload(headers: Mapping[str, str]) -> slos_serve.OnOverload | None:
    name = _name(headers, ON_OVERLOAD.headers)
    if name is None:
        return None
    try:
        return slos_serve.OnOverload[headers[name].strip().upper()]
    except KeyError:
        choices = " or ".join(choice.name.lower() for choice in slos_serve.OnOverload)
        raise ContractError(name, f"must be {choices}", repr(clipped(headers[name]))) from None
