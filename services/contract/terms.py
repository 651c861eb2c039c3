"""The fields of a contract, each with the names and the unit that it has in headers and JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """The names of one field of a contract. Its key in JSON is that of the field of `SloBody` that carries the term."""

    path: str
    """Path of the field in `Contract`; for a field of a decode stage, its name in `DecodeTarget`."""
    headers: tuple[str, ...] = ()
    """Names of the HTTP header and of gRPC metadata; the first that is there counts."""
    per_unit: float = 1.0
    """Ratio of the figure outside to that in `Contract`: 1000 for times, as milliseconds outside are seconds inside."""


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
