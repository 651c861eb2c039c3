"""Contracts in JSON: milliseconds outside, seconds inside, and errors in the words of the body."""

from __future__ import annotations

from typing import Any

import pytest

from services.contract.body import SloBody, body_of_contract, contract_of_body
from services.slo.contract import MAX_STAGES, ContractError
from slos_serve import Contract, DecodeTarget, OnOverload, PrefillTarget

WHOLE: dict[str, Any] = {
    "profile": "reasoning",
    "max_slowdown": 3.0,
    "stages": ({"tpot_ms": 20.0, "ends_with": "</think>"}, {"tpot_ms": 100.0}),
    "final_stages": ({"tpot_ms": 200.0},),
    "value": 2.5,
    "on_overload": "refuse",
    "session_id": "s",
    "session_final": True,
    "task_deadline_ms": 5000.0,
}


def read(**slo: Any) -> Contract:
    return contract_of_body(SloBody.model_validate(slo))


def test_an_empty_body_asks_for_nothing() -> None:
    assert read() == Contract()


def test_a_target_for_each_of_the_two_times() -> None:
    assert read(ttft_ms=200, tpot_ms=50) == Contract.latency(ttft_s=0.2, tpot_s=0.05)


def test_every_field_of_a_contract() -> None:
    contract = Contract(
        profile="reasoning",
        prefill=PrefillTarget(max_slowdown=3),
        decode=(DecodeTarget(0.02, "</think>"), DecodeTarget(0.1)),
        final_decode=(DecodeTarget(0.2),),
        value=2.5,
        on_overload=OnOverload.REFUSE,
        session_id="s",
        session_final=True,
        task_deadline_s=5.0,
    )
    assert read(**WHOLE) == contract
    assert body_of_contract(contract) == WHOLE


@pytest.mark.parametrize(
    "contract",
    [Contract(), Contract.latency(ttft_s=0.25, tpot_s=0.05, on_overload=OnOverload.BEST_EFFORT), Contract(value=1.0)],
)
def test_what_is_written_is_what_is_read(contract: Contract) -> None:
    assert read(**body_of_contract(contract)) == contract


POSITIVE = "must be finite and positive; got "


@pytest.mark.parametrize(
    ("slo", "path", "detail"),
    [
        ({"ttft_ms": -500}, "ttft_ms", POSITIVE + "-500.0"),
        ({"max_slowdown": 0.5}, "max_slowdown", "must be finite and at least 1; got 0.5"),
        ({"tpot_ms": 0}, "tpot_ms", POSITIVE + "0.0"),
        ({"stages": [{"tpot_ms": 5, "ends_with": "x"}, {"tpot_ms": -2}]}, "stages[1].tpot_ms", POSITIVE + "-2.0"),
        ({"final_stages": [{"tpot_ms": -2}]}, "final_stages[0].tpot_ms", POSITIVE + "-2.0"),
        (
            {"ttft_ms": 5, "stages": [{"tpot_ms": 5, "ends_with": "x"}, {"tpot_ms": 5}, {"tpot_ms": 5}]},
            "stages[1].ends_with",
            "every decode stage but the last must say how it ends",
        ),
        (
            {"final_stages": [{"tpot_ms": 5}, {"tpot_ms": 5}]},
            "final_stages[0].ends_with",
            "every decode stage but the last must say how it ends",
        ),
        (
            {"stages": [{"tpot_ms": 5, "ends_with": "x"}] * (MAX_STAGES + 1)},
            "stages",
            f"at most {MAX_STAGES} decode stages; got {MAX_STAGES + 1}",
        ),
        ({"value": 0}, "value", POSITIVE + "0.0"),
        ({"task_deadline_ms": -1}, "task_deadline_ms", POSITIVE + "-1.0"),
        (
            {"ttft_ms": 5, "max_slowdown": 3},
            "max_slowdown",
            "the first token is due at ttft_ms or at max_slowdown, not at both",
        ),
        ({"tpot_ms": 5, "stages": [{"tpot_ms": 5}]}, "tpot_ms", "give tpot_ms or stages, not both"),
    ],
)
def test_a_field_that_makes_no_sense_is_named_as_it_was_written(slo: dict[str, Any], path: str, detail: str) -> None:
    with pytest.raises(ContractError) as caught:
        read(**slo)
    assert (caught.value.path, caught.value.detail) == (f"slo.{path}", detail)
