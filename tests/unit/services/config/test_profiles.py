"""Profiles of the configuration become contracts, beside those of the paper or in their place."""

from __future__ import annotations

from typing import Any

import pytest

from services.config.profiles import profile_book
from services.config.settings import ProfileSettings
from services.slo.contract import PAPER_PROFILES, Contract, ContractError, DecodeTarget, OnOverload, PrefillTarget


def configured(**options: Any) -> ProfileSettings:
    return ProfileSettings.model_validate(options)


def test_every_part_of_a_profile_is_in_its_contract() -> None:
    book = profile_book(
        {
            "agent": configured(
                prefill={"max_slowdown": 4.0},
                decode=[{"tpot_s": 0.03, "ends_with": "</think>"}, {"tpot_s": 0.09}],
                final_decode=[{"tpot_s": 0.07}],
                value=3.0,
                on_overload="refuse",
            )
        }
    )
    assert book.lookup("agent") == Contract(
        prefill=PrefillTarget(max_slowdown=4.0),
        decode=(DecodeTarget(0.03, "</think>"), DecodeTarget(0.09)),
        final_decode=(DecodeTarget(0.07),),
        value=3.0,
        on_overload=OnOverload.REFUSE,
        profile="agent",
    )


def test_a_profile_may_have_no_target_for_the_first_token() -> None:
    assert profile_book({"p": configured(decode=[{"tpot_s": 0.1}])}).lookup("p").prefill is None
    assert profile_book({"p": configured(prefill={"ttft_s": 0.2})}).lookup("p").prefill == PrefillTarget(ttft_s=0.2)


def test_a_configured_profile_takes_the_place_of_one_of_the_paper() -> None:
    book = profile_book({"chatbot": configured(decode=[{"tpot_s": 0.9}])})
    assert book.lookup("chatbot").decode == (DecodeTarget(0.9),)
    assert book.lookup("coder").decode == PAPER_PROFILES["coder"].decode


def test_the_error_of_a_profile_names_its_place_in_the_file() -> None:
    with pytest.raises(ContractError) as raised:
        profile_book({"odd": configured(prefill={"ttft_s": 0.2, "max_slowdown": 2.0})})
    assert raised.value.path.startswith("profiles.odd.prefill")
    with pytest.raises(ContractError) as raised:
        profile_book({"odd": configured(final_decode=[{"tpot_s": 0.1}, {"tpot_s": 0.2}])})
    assert raised.value.path.startswith("profiles.odd.final_decode")
