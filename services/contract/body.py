"""The contract in JSON: the object `slo` of a request's body, with times in milliseconds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

import slos_serve
from services.contract.resolution import NO_TARGETS, resolve
from services.contract.terms import (
    DECODE,
    ENDS_WITH,
    FINAL_DECODE,
    MAX_SLOWDOWN,
    ON_OVERLOAD,
    PROFILE,
    SESSION_FINAL,
    SESSION_ID,
    TASK_DEADLINE,
    TPOT,
    TTFT,
    VALUE,
    Term,
)
from services.slo.contract import ContractError

KEY = "slo"
"""The key of the contract in the body of a request."""
_STAGE = re.compile(r"(?P<list>\w+)\[(?P<index>\d+)\]\.(?P<field>\w+)")


Choice = Literal["best_effort", "refuse"]
_CHOICES: dict[slos_serve.OnOverload, Choice] = {
    slos_serve.OnOverload.BEST_EFFORT: "best_effort",
    slos_serve.OnOverload.REFUSE: "refuse",
}
_ON_OVERLOAD = {choice: on_overload for on_overload, choice in _CHOICES.items()}


class _Strict(BaseModel):
    """A misspelt field would silently promise nothing, so unknown ones are refused; NaN is no number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _with_first_unknown_key(cls, content: object) -> object:
        """Leave only the first of unknown keys: a fault is made for each, and a client may send a hundred thousand."""
        if not isinstance(content, dict) or len(content) <= len(cls.model_fields):
            return content
        unknown = next(key for key in content if key not in cls.model_fields)
        return {key: value for key, value in content.items() if key in cls.model_fields or key == unknown}


class StageBody(_Strict):
    """One decode stage as a client wrote it."""

    tpot_ms: Annotated[float, TPOT]
    ends_with: Annotated[str, ENDS_WITH] = ""


class SloBody(_Strict):
    """The object that a client wrote under `slo`."""

    profile: Annotated[str, PROFILE] = ""
    ttft_ms: Annotated[float | None, TTFT] = None
    max_slowdown: Annotated[float | None, MAX_SLOWDOWN] = None
    tpot_ms: Annotated[float | None, TPOT] = None
    """TPOT of a request of one stage, in place of `stages`."""
    stages: Annotated[tuple[StageBody, ...], Field(fail_fast=True), DECODE] = Field((), strict=False)
    final_stages: Annotated[tuple[StageBody, ...], Field(fail_fast=True), FINAL_DECODE] = Field((), strict=False)
    value: Annotated[float | None, VALUE] = None
    on_overload: Annotated[Choice | None, ON_OVERLOAD] = None
    session_id: Annotated[str, SESSION_ID] = ""
    session_final: Annotated[bool, SESSION_FINAL] = False
    task_deadline_ms: Annotated[float | None, TASK_DEADLINE] = None


def contract_of_body(body: SloBody) -> slos_serve.Contract:
    """Return the contract that a body asks for.

    Raises:
        ContractError: a field makes no sense; the path is that of the body.
    """
    if body.ttft_ms is not None and body.max_slowdown is not None:
        raise ContractError(f"{KEY}.max_slowdown", "the first token is due at ttft_ms or at max_slowdown, not at both")
    if body.stages and body.tpot_ms is not None:
        raise ContractError(f"{KEY}.tpot_ms", "give tpot_ms or stages, not both")
    prefill = None
    if body.ttft_ms is not None or body.max_slowdown is not None:
        prefill = slos_serve.PrefillTarget(_inside(body.ttft_ms, TTFT), body.max_slowdown)
    short = () if body.tpot_ms is None else (StageBody(tpot_ms=body.tpot_ms),)
    contract = slos_serve.Contract(
        profile=body.profile,
        prefill=prefill,
        decode=_targets(body.stages or short),
        final_decode=_targets(body.final_stages),
        value=body.value,
        on_overload=None if body.on_overload is None else _ON_OVERLOAD[body.on_overload],
        session_id=body.session_id,
        session_final=body.session_final,
        task_deadline_s=_inside(body.task_deadline_ms, TASK_DEADLINE),
    )
    try:
        resolve(contract, NO_TARGETS)
    except ContractError as error:
        raise _renamed(error, body) from error
    return contract


def body_of_contract(contract: slos_serve.Contract) -> dict[str, Any]:
    """Return the JSON of a contract, without what the contract leaves unset."""
    prefill = contract.prefill
    body = SloBody(
        profile=contract.profile,
        ttft_ms=None if prefill is None else _outside(prefill.ttft_s, TTFT),
        max_slowdown=None if prefill is None else prefill.max_slowdown,
        stages=_stages(contract.decode),
        final_stages=_stages(contract.final_decode),
        value=contract.value,
        on_overload=None if contract.on_overload is None else _CHOICES[contract.on_overload],
        session_id=contract.session_id,
        session_final=contract.session_final,
        task_deadline_ms=_outside(contract.task_deadline_s, TASK_DEADLINE),
    )
    return body.model_dump(exclude_defaults=True)


def _inside(figure: float | None, term: Term) -> float | None:
    return None if figure is None else figure / term.per_unit


def _outside(figure: float | None, term: Term) -> float | None:
    return None if figure is None else figure * term.per_unit


def _stages(targets: tuple[slos_serve.DecodeTarget, ...]) -> tuple[StageBody, ...]:
    return tuple(StageBody(tpot_ms=target.tpot_s * TPOT.per_unit, ends_with=target.ends_with) for target in targets)


def _targets(stages: tuple[StageBody, ...]) -> tuple[slos_serve.DecodeTarget, ...]:
    return tuple(slos_serve.DecodeTarget(stage.tpot_ms / TPOT.per_unit, stage.ends_with) for stage in stages)


def _keys(model: type[BaseModel]) -> dict[str, tuple[str, Term]]:
    """Return the keys of a model, and their terms, by the path of the term."""
    fields = model.model_fields.items()
    return {term.path: (key, term) for key, field in fields for term in field.metadata if isinstance(term, Term)}


_BODY_KEYS, _STAGE_KEYS = _keys(SloBody), _keys(StageBody)


def _renamed(error: ContractError, body: SloBody) -> ContractError:
    stage = _STAGE.fullmatch(error.path)
    if stage is None:
        key, term = _BODY_KEYS[error.path]
        path = key
    else:
        key, term = _STAGE_KEYS[stage["field"]]
        path = f"{_BODY_KEYS[stage['list']][0]}[{stage['index']}].{key}"
        if stage["list"] == DECODE.path and not body.stages:
            path = _BODY_KEYS[TPOT.path][0]
    got: Any = error.got * term.per_unit if isinstance(error.got, float) else error.got
    return error.renamed(f"{KEY}.{path}", got)
