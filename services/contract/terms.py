"""The figures of a contract, each with its names and its unit outside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """One field of a contract. Its key in JSON is the name of the field of `SloBody` that carries this term."""

    path: str
    """Where a `Contract` holds the field; for a field of a decode stage, where `DecodeTarget` does."""
    headers: tuple[str, ...] = ()
    """Names of the field as an HTTP header and as gRPC metadata; the first that is there counts."""
    per_unit: float = 1.0
    """Figure outside over figure in the contract: 1000 for times, which are milliseconds outside and seconds inside."""


PROFILE = Term("profile", ("x-slo-profile",))
TTFT = Term("prefill.ttft_s", ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms"), 1e3)
MAX_SLOWDOWN = Term("prefill.max_slowdown")
DECODE = Term("decode")
FINAL_DECODE = Term("final_decode")
TPOT = Term("tpot_s", ("x-slo-tpot-ms", "x-llm-d-slo-tpot-ms"), 1e3)
ENDS_WITH = Term("ends_with")
VALUE = Term("value")
ON_OVERLOAD = Term("on_overload", ("x-slo-on-overload",))
SESSION_ID = Term("session_id")
SESSION_FINAL = Term("session_final")
TASK_DEADLINE = Term("task_deadline_s", per_unit=1e3)
