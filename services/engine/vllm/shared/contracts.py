"""The contract of a request, on its way into EngineCore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.engine.protocol import EngineRequest
from services.slo.composer.token_deadlines import TokenDeadlines

CONTRACT_KEY = "slo"
"""Key in vLLM's `extra_args`, of a mapping as `contract_to_wire` makes it."""


class MalformedContractError(ValueError):
    """A contract is not what `contract_to_wire` writes."""


@dataclass(frozen=True, slots=True)
class EngineContract:
    """The latency that a request was promised, as the scheduler keeps it."""

    deadlines: TokenDeadlines = field(default_factory=TokenDeadlines)
    """Due times on this host's monotonic clock."""
    best_effort: bool = True
    application: str = ""


def contract_to_wire(request: EngineRequest, now_s: float) -> dict[str, Any]:
    """Return the contract as plain values that outlast a wait before EngineCore: both processes read the same clock."""
    return {
        "deadline_in_s": request.deadline_in_s,
        "tpot_s": request.tpot_s,
        "best_effort": request.best_effort,
        "application": request.application,
        "stated_at_s": now_s,
    }


def contract_from_wire(wire: object, generated_tokens: int, now_s: float) -> EngineContract:
    """Return the contract that `contract_to_wire` has written.

    Args:
        generated_tokens: number of output tokens that come with the prompt.
        now_s: a time of statement that is missing, or lies in the future, is taken for this.

    Raises:
        MalformedContractError: naming the field.
    """
    if not isinstance(wire, Mapping):
        raise MalformedContractError(f"a contract is a mapping, not {type(wire).__name__}")
    best_effort = wire.get("best_effort", False)
    if not isinstance(best_effort, bool):
        raise MalformedContractError(f"best_effort is {best_effort!r}")
    application = wire.get("application", "")
    if not isinstance(application, str):
        raise MalformedContractError(f"application is {application!r}")
    deadline_in_s, tpot_s = _number(wire, "deadline_in_s"), _number(wire, "tpot_s")
    stated_at_s = _number(wire, "stated_at_s")
    began_s = now_s if stated_at_s is None else min(stated_at_s, now_s)
    try:
        deadlines = TokenDeadlines.begin(began_s, deadline_in_s, tpot_s, generated_tokens, best_effort=best_effort)
    except ValueError as error:
        raise MalformedContractError(str(error)) from error
    return EngineContract(deadlines, best_effort or (deadline_in_s is None and tpot_s is None), application)


def _number(wire: Mapping[Any, Any], name: str) -> float | None:
    value = wire.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedContractError(f"{name} is {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise MalformedContractError(f"{name} is too large") from error
