"""The contract of an HTTP request: the body's `slo` wins over headers, target by target."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gateway.failures import invalid
from gateway.requests import SloBody
from slos_serve import Contract, DecodeTarget, OnOverload, PrefillTarget

TTFT_HEADERS = ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms")
TPOT_HEADERS = ("x-slo-tpot-ms", "x-llm-d-slo-tpot-ms")
PROFILE_HEADER = "x-slo-profile"
ON_OVERLOAD_HEADER = "x-slo-on-overload"
TENANT_HEADERS = ("x-tenant-id", "x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
APPLICATION_HEADER = "x-slo-application"


def contract_of(slo: SloBody | None, headers: Mapping[str, str]) -> Contract | None:
    """None if nothing is asked for.

    Raises:
        Failure: 400, with the field or header at fault.
    """
    body = slo or SloBody()
    contract = Contract(
        profile=body.profile or headers.get(PROFILE_HEADER, ""),
        prefill=_prefill(body, headers),
        decode=_decode(body, headers),
        final_decode=tuple(DecodeTarget(stage.tpot_ms / 1e3, stage.ends_with) for stage in body.final_stages),
        value=body.value,
        on_overload=_on_overload(body.on_overload, headers),
        session_id=body.session_id,
        session_final=body.session_final,
        task_deadline_s=None if body.task_deadline_ms is None else body.task_deadline_ms / 1e3,
    )
    return None if contract == Contract() else contract


def first_header(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((headers[name] for name in names if name in headers), "")


def _prefill(body: SloBody, headers: Mapping[str, str]) -> PrefillTarget | None:
    if body.ttft_ms is not None and body.max_slowdown is not None:
        raise invalid("slo.max_slowdown", "the first token is due at ttft_ms or at max_slowdown, not at both")
    if body.max_slowdown is not None:
        return PrefillTarget(max_slowdown=body.max_slowdown)
    ttft_ms = body.ttft_ms if body.ttft_ms is not None else _header_ms(headers, TTFT_HEADERS)
    return None if ttft_ms is None else PrefillTarget(ttft_s=ttft_ms / 1e3)


def _decode(body: SloBody, headers: Mapping[str, str]) -> tuple[DecodeTarget, ...]:
    if body.stages:
        if body.tpot_ms is not None:
            raise invalid("slo.tpot_ms", "give tpot_ms or stages, not both")
        return tuple(DecodeTarget(stage.tpot_ms / 1e3, stage.ends_with) for stage in body.stages)
    tpot_ms = body.tpot_ms if body.tpot_ms is not None else _header_ms(headers, TPOT_HEADERS)
    return () if tpot_ms is None else (DecodeTarget(tpot_ms / 1e3),)


def _on_overload(choice: str | None, headers: Mapping[str, str]) -> OnOverload | None:
    choice = choice or headers.get(ON_OVERLOAD_HEADER)
    if choice is None:
        return None
    try:
        return OnOverload[choice.strip().upper()]
    except KeyError:
        raise invalid(ON_OVERLOAD_HEADER, f"must be best_effort or refuse; got {choice[:40]!r}") from None


def _header_ms(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        if name in headers:
            try:
                milliseconds = float(headers[name])
            except ValueError:
                raise invalid(name, f"{headers[name][:40]!r} is no number of milliseconds") from None
            if not math.isfinite(milliseconds) or milliseconds <= 0:
                raise invalid(name, f"must be finite and positive; got {headers[name][:40]}")
            return milliseconds
    return None
