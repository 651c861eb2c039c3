"""Contracts: what is accepted, what is refused and which field is named."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.contract import (
    PAPER_PROFILES,
    Contract,
    ContractError,
    DecodeTarget,
    PrefillTarget,
    ProfileBook,
)

BAD_SECONDS = [0.0, -1.0, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("seconds", BAD_SECONDS)
def test_targets_that_are_no_positive_number_of_seconds_are_refused(seconds: float) -> None:
    with pytest.raises(ContractError, match="ttft_s"):
        PrefillTarget(ttft_s=seconds)
    with pytest.raises(ContractError, match="tpot_s"):
        DecodeTarget(tpot_s=seconds)
    with pytest.raises(ContractError, match="value"):
        Contract(value=seconds)


@pytest.mark.parametrize("slowdown", [0.5, 0.999, *BAD_SECONDS])
def test_a_slowdown_below_one_is_refused(slowdown: float) -> None:
    with pytest.raises(ContractError, match="max_slowdown"):
        PrefillTarget(max_slowdown=slowdown)


def test_a_prefill_target_is_absolute_or_relative_never_both_or_neither() -> None:
    with pytest.raises(ContractError):
        PrefillTarget()
    with pytest.raises(ContractError):
        PrefillTarget(ttft_s=1.0, max_slowdown=2.0)


def test_only_the_last_decode_stage_may_have_no_end() -> None:
    for field in ("decode", "final_decode"):
        stages = (DecodeTarget(0.1, "x"), DecodeTarget(0.1), DecodeTarget(0.2))
        with pytest.raises(ContractError) as caught:
            Contract(**{field: stages})  # type: ignore[arg-type]
        assert caught.value.path == f"{field}[1].ends_with"


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(ContractError, match="at most 64"):
        Contract(decode=(*(DecodeTarget(0.1, ends_with="x") for _ in range(64)), DecodeTarget(0.1)))


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ContractError, match="chatbot, coder") as caught:
        ProfileBook(PAPER_PROFILES).lookup("chat-bot")
    assert caught.value.path == "profile"


@given(
    slowdown=st.floats(min_value=1, max_value=100),
    idle_s=st.floats(min_value=1e-4, max_value=1e3),
)
def test_resolving_turns_a_slowdown_into_seconds_and_is_idempotent(slowdown: float, idle_s: float) -> None:
    contract = Contract(prefill=PrefillTarget(max_slowdown=slowdown), decode=(DecodeTarget(0.1),))
    resolved = contract.resolved(idle_s)
    assert resolved.prefill is not None
    assert resolved.prefill.ttft_s == pytest.approx(slowdown * idle_s)
    assert resolved.resolved(idle_s * 7) == resolved
    assert resolved.decode == contract.decode
