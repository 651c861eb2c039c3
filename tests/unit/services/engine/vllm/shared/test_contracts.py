"""Contracts on their way into EngineCore, as they arrive and as nonsense."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.protocol import EngineRequest, SamplingOptions
from services.engine.vllm.shared.contracts import MalformedContractError, contract_from_wire, contract_to_wire

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def request(**more: Any) -> EngineRequest:
    return EngineRequest("r", (1, 2, 3), 0, SamplingOptions(max_tokens=4), **more)


def test_survive_the_wire() -> None:
    wire = json.loads(json.dumps(contract_to_wire(request(deadline_in_s=1.5, tpot_s=0.05), 100.0)))
    contract = contract_from_wire(wire, 0, 100.2)
    assert contract.deadlines.due_s == 101.5
    assert contract.deadlines.tpot_s == 0.05
    assert not contract.best_effort


def test_time_of_statement_in_the_future_is_now() -> None:
    """The clock went backwards since."""
    wire = contract_to_wire(request(deadline_in_s=1.0), 500.0)
    assert contract_from_wire(wire, 0, 100.0).deadlines.due_s == 101.0


def test_deadline_in_the_past_stays_a_promise() -> None:
    contract = contract_from_wire(contract_to_wire(request(deadline_in_s=-4.0), 100.0), 0, 100.0)
    assert contract.deadlines.due_s == 96.0
    assert not contract.best_effort


def test_without_a_target_is_best_effort() -> None:
    assert contract_from_wire(contract_to_wire(request(), 0.0), 0, 0.0).best_effort


def test_best_effort_keeps_its_targets() -> None:
    wire = contract_to_wire(request(deadline_in_s=1.0, tpot_s=0.1, best_effort=True), 0.0)
    assert contract_from_wire(wire, 0, 0.0).best_effort


@given(
    st.sampled_from(["deadline_in_s", "tpot_s", "best_effort", "stated_at_s", "application"]),
    st.one_of(st.text(), st.booleans(), st.lists(st.none()), st.sampled_from([math.nan, math.inf, 10**400])),
)
def test_nonsense_names_its_field(name: str, value: object) -> None:
    wire = {**contract_to_wire(request(deadline_in_s=1.0, tpot_s=0.1), 0.0), name: value}
    if (name == "best_effort" and isinstance(value, bool)) or (name == "application" and isinstance(value, str)):
        return
    if name == "stated_at_s" and isinstance(value, float):
        # Not a duration that anything is computed from before it is cut to now.
        return
    with pytest.raises(MalformedContractError, match=name):
        contract_from_wire(wire, 0, 0.0)


@given(ANYTHING)
def test_anything_else_is_malformed_or_harmless(wire: object) -> None:
    try:
        contract = contract_from_wire(wire, 0, 0.0)
    except MalformedContractError:
        return
    assert contract.deadlines.tpot_s > 0
    assert not math.isnan(contract.deadlines.due_s)
