"""From message, metadata and profile to one contract: what wins, and which field is named when it makes no sense."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contract.resolution import contract_of_call, in_force, resolve
from services.slo.contract import Contract, ContractError, DecodeTarget, OnOverload, PrefillTarget, ProfileBook
from slos_serve.contract import contract_from_wire, contract_to_wire
from slos_serve.v1 import contract_pb2

Message = contract_pb2.Contract
Stage = contract_pb2.Stage
Prefill = contract_pb2.PrefillStage
Decode = contract_pb2.DecodeStage

STRICT = Contract(
    PrefillTarget(max_slowdown=4.0),
    (DecodeTarget(0.04),),
    (DecodeTarget(0.4),),
    value=7.0,
    on_overload=OnOverload.REFUSE,
)
PROFILES = ProfileBook({"strict": STRICT, "loose": Contract(PrefillTarget(ttft_s=9.0))})
HEADERS = {"x-slo-ttft-ms": "300", "x-slo-tpot-ms": "30", "x-slo-profile": "strict", "x-slo-on-overload": "refuse"}


def read(message: Message, headers: Mapping[str, str] | None = None) -> Contract:
    return contract_of_call(message, headers or {}, PROFILES)


def test_a_call_that_asks_for_nothing_gets_nothing() -> None:
    assert read(Message()) == Contract()


def test_a_profile_supplies_what_is_left_unset() -> None:
    by_message = read(Message(profile="strict"))
    assert by_message.profile == "strict"
    assert (by_message.prefill, by_message.decode, by_message.final_decode) == (
        STRICT.prefill,
        STRICT.decode,
        STRICT.final_decode,
    )
    assert (by_message.value, by_message.on_overload) == (7.0, OnOverload.REFUSE)
    assert read(Message(), {"x-slo-profile": "strict"}) == by_message


def test_metadata_win_over_the_profile_target_by_target() -> None:
    assert read(Message(), HEADERS).prefill == PrefillTarget(ttft_s=0.3)
    assert read(Message(), HEADERS).decode == (DecodeTarget(0.03),)
    first_token = read(Message(profile="strict"), {"x-slo-ttft-ms": "300", "x-slo-on-overload": "best_effort"})
    assert first_token.prefill == PrefillTarget(ttft_s=0.3)
    assert first_token.decode == STRICT.decode
    assert first_token.on_overload is OnOverload.BEST_EFFORT


def test_the_message_wins_over_metadata_target_by_target() -> None:
    first_token = read(Message(stages=[Stage(prefill=Prefill(ttft_s=0.1))]), HEADERS)
    assert (first_token.prefill, first_token.decode) == (PrefillTarget(ttft_s=0.1), (DecodeTarget(0.03),))
    output = read(Message(stages=[Stage(decode=Decode(tpot_s=0.01))]), HEADERS)
    assert (output.prefill, output.decode) == (PrefillTarget(ttft_s=0.3), (DecodeTarget(0.01),))
    choice = read(Message(on_overload=contract_pb2.ON_OVERLOAD_BEST_EFFORT), HEADERS)
    assert choice.on_overload is OnOverload.BEST_EFFORT
    profile = read(Message(profile="loose"), {"x-slo-profile": "strict"})
    assert (profile.profile, profile.prefill, profile.decode) == ("loose", PrefillTarget(ttft_s=9.0), ())


def test_a_message_sets_every_field() -> None:
    message = Message(
        profile="strict",
        stages=[
            Stage(prefill=Prefill(max_slowdown=2.0)),
            Stage(decode=Decode(tpot_s=0.01, ends_with="x")),
            Stage(decode=Decode(tpot_s=0.02)),
        ],
        final_stages=[Decode(tpot_s=0.5)],
        value=3.0,
        on_overload=contract_pb2.ON_OVERLOAD_BEST_EFFORT,
        session_id="s",
        session_final=True,
        task_deadline_s=8.0,
    )
    assert read(message, HEADERS) == Contract(
        PrefillTarget(max_slowdown=2.0),
        (DecodeTarget(0.01, "x"), DecodeTarget(0.02)),
        (DecodeTarget(0.5),),
        value=3.0,
        on_overload=OnOverload.BEST_EFFORT,
        profile="strict",
        session_id="s",
        session_final=True,
        task_deadline_s=8.0,
    )


POSITIVE = "must be finite and positive; got "
ENDLESS = "every decode stage but the last must say how it ends"


@pytest.mark.parametrize(
    ("message", "path", "detail"),
    [
        (Message(stages=[Stage(prefill=Prefill(ttft_s=-1))]), "stages[0].prefill.ttft_s", POSITIVE + "-1.0"),
        (
            Message(stages=[Stage(prefill=Prefill(max_slowdown=0.5))]),
            "stages[0].prefill.max_slowdown",
            "must be finite and at least 1; got 0.5",
        ),
        (Message(stages=[Stage(prefill=Prefill())]), "stages[0].prefill", "needs ttft_s or max_slowdown"),
        (
            Message(stages=[Stage(decode=Decode(tpot_s=1)), Stage(prefill=Prefill(ttft_s=1))]),
            "stages[1].prefill",
            "the prefill stage comes first, and once",
        ),
        (
            Message(stages=[Stage(prefill=Prefill(ttft_s=1)), Stage(prefill=Prefill(ttft_s=1))]),
            "stages[1].prefill",
            "the prefill stage comes first, and once",
        ),
        (
            Message(stages=[Stage(decode=Decode(tpot_s=1)), Stage()]),
            "stages[1].kind",
            "one of prefill and decode is needed",
        ),
        (Message(stages=[Stage(decode=Decode(tpot_s=0))]), "stages[0].decode.tpot_s", POSITIVE + "0.0"),
        (
            Message(stages=[Stage(prefill=Prefill(ttft_s=1)), Stage(decode=Decode(tpot_s=0))]),
            "stages[1].decode.tpot_s",
            POSITIVE + "0.0",
        ),
        (
            Message(stages=[Stage(prefill=Prefill(ttft_s=1)), *[Stage(decode=Decode(tpot_s=1))] * 2]),
            "stages[1].decode.ends_with",
            ENDLESS,
        ),
        (Message(stages=[Stage(decode=Decode(tpot_s=1))] * 2), "stages[0].decode.ends_with", ENDLESS),
        (
            Message(stages=[Stage(decode=Decode(tpot_s=1, ends_with="x"))] * 65),
            "stages",
            "at most 64 decode stages; got 65",
        ),
        (Message(final_stages=[Decode(tpot_s=-1)]), "final_stages[0].tpot_s", POSITIVE + "-1.0"),
        (Message(final_stages=[Decode(tpot_s=1)] * 2), "final_stages[0].ends_with", ENDLESS),
        (Message(value=0), "value", POSITIVE + "0.0"),
        (Message(task_deadline_s=0), "task_deadline_s", POSITIVE + "0.0"),
        (Message(profile="nobody"), "profile", "unknown profile 'nobody'; known: loose, strict"),
    ],
)
def test_a_field_of_the_message_that_makes_no_sense_is_named_by_its_path(
    message: Message, path: str, detail: str
) -> None:
    with pytest.raises(ContractError) as caught:
        read(message, HEADERS)
    assert (caught.value.path, caught.value.detail) == (f"contract.{path}", detail)


@pytest.mark.parametrize(
    ("name", "text"), [("x-slo-profile", "nobody"), ("x-llm-d-slo-ttft-ms", "-1"), ("x-slo-on-overload", "panic")]
)
def test_metadata_that_make_no_sense_are_named(name: str, text: str) -> None:
    with pytest.raises(ContractError) as caught:
        read(Message(), {name: text})
    assert caught.value.path == name


def test_a_choice_of_a_later_version_is_no_choice() -> None:
    message = Message(profile="strict", on_overload=17)  # type: ignore[arg-type]
    assert read(message).on_overload is OnOverload.REFUSE


seconds = st.floats(min_value=1e-3, max_value=1e3)
prefills = st.one_of(
    st.none(),
    st.builds(PrefillTarget, ttft_s=seconds),
    st.builds(PrefillTarget, max_slowdown=st.floats(min_value=1, max_value=50)),
)
stages = st.lists(st.builds(DecodeTarget, seconds, st.sampled_from(["x", "</think>"])), max_size=3).map(tuple)
contracts = st.builds(
    Contract,
    prefill=prefills,
    decode=stages,
    final_decode=stages,
    value=seconds,
    on_overload=st.sampled_from(OnOverload),
    session_id=st.sampled_from(["", "s"]),
    session_final=st.booleans(),
    task_deadline_s=st.none() | seconds,
)


@given(contract=contracts)
def test_what_is_in_force_is_told_whole_and_asks_for_itself_again(contract: Contract) -> None:
    message = contract_to_wire(in_force(contract))
    assert resolve(contract_from_wire(message), Contract()) == contract
    assert contract_to_wire(contract_from_wire(message)) == message
