"""Contracts: what is accepted, what is refused and which field is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.contract import (
    MAX_SLOWDOWN,
    MAX_STAGES,
    MAX_TARGET_S,
    MIN_TARGET_S,
    PAPER_PROFILES,
    SOME_TEXT,
    Contract,
    ContractError,
    DecodeTarget,
    OnOverload,
    PrefillTarget,
    ProfileBook,
    decode_targets,
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


def test_a_contract_without_texts_promises_the_same_and_shows_none() -> None:
    target = DecodeTarget(0.1, ends_with="secret")
    full = Contract(PrefillTarget(ttft_s=1.0), (target, DecodeTarget(0.2)), (target, DecodeTarget(0.3)), session_id="s")
    bare = full.without_texts()
    assert [stage.tpot_s for stage in (*bare.decode, *bare.final_decode)] == [0.1, 0.2, 0.1, 0.3]
    assert [stage.ends_with for stage in bare.decode] == [SOME_TEXT, ""]
    assert (bare.prefill, bare.session_id) == (full.prefill, "s")
    assert bare.without_texts() == bare
    assert "secret" not in repr(full)


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


@pytest.mark.parametrize("seconds", BAD_SECONDS)
def test_a_deadline_of_a_task_that_is_no_positive_number_of_seconds_is_refused(seconds: float) -> None:
    with pytest.raises(ContractError) as caught:
        Contract(task_deadline_s=seconds)
    assert caught.value.path == "task_deadline_s"
    assert Contract(task_deadline_s=0.5).task_deadline_s == 0.5


def test_a_request_of_several_stages_is_planned_at_its_tightest_rate() -> None:
    stages = (DecodeTarget(0.2, "a"), DecodeTarget(0.05, "b"), DecodeTarget(0.1))
    assert Contract(decode=stages).tightest_tpot_s == 0.05
    assert Contract().tightest_tpot_s is None
    assert Contract(final_decode=(DecodeTarget(0.1),)).tightest_tpot_s is None


def test_one_target_is_enough_of_a_promise() -> None:
    assert not Contract().promises_anything
    assert not Contract(final_decode=(DecodeTarget(0.1),)).promises_anything
    assert Contract(prefill=PrefillTarget(ttft_s=1.0)).promises_anything
    assert Contract(decode=(DecodeTarget(0.1),)).promises_anything


def test_as_many_stages_as_are_allowed_are_taken() -> None:
    stages = (*(DecodeTarget(0.1, ends_with="x") for _ in range(MAX_STAGES - 1)), DecodeTarget(0.1))
    assert Contract(decode=stages, final_decode=stages).decode == stages
    with pytest.raises(ContractError) as caught:
        Contract(final_decode=(DecodeTarget(0.1, ends_with="x"), *stages))
    assert (caught.value.path, caught.value.got) == ("final_decode", MAX_STAGES + 1)


def test_the_smallest_slowdown_is_one() -> None:
    assert PrefillTarget(max_slowdown=1.0).max_slowdown == 1.0
    with pytest.raises(ContractError, match=r"max_slowdown: must be finite and at least 1; got 0\.5"):
        PrefillTarget(max_slowdown=0.5)
    with pytest.raises(ContractError, match=r"ttft_s: must be finite and positive; got -1\.0"):
        PrefillTarget(ttft_s=-1.0)


def test_a_slowdown_multiplies_the_time_on_an_idle_worker() -> None:
    assert Contract(prefill=PrefillTarget(max_slowdown=3.0)).ttft_s(0.5) == 1.5
    assert Contract(prefill=PrefillTarget(ttft_s=2.0)).ttft_s(0.5) == 2.0
    assert Contract().ttft_s(0.5) is None
    untimed = Contract(decode=(DecodeTarget(0.1),))
    assert untimed.resolved(0.5) is untimed


def test_a_profile_is_found_by_its_name_and_keeps_it() -> None:
    book = ProfileBook({"fast": Contract(value=2.0)})
    assert book.lookup("fast") == Contract(value=2.0, profile="fast")
    with pytest.raises(ContractError, match="unknown profile 'x'; known: none"):
        ProfileBook().lookup("x")


def test_profiles_are_those_of_the_paper() -> None:
    """The targets of arXiv 2504.08784: slowdown of the prompt, TPOT, and of the last requests or stages."""

    def figures(name: str) -> tuple[float | None, tuple[float, ...], tuple[float, ...]]:
        contract = PAPER_PROFILES[name]
        assert contract.prefill is not None
        tpots_s = tuple(target.tpot_s for target in contract.decode)
        return contract.prefill.max_slowdown, tpots_s, tuple(target.tpot_s for target in contract.final_decode)

    assert {name: figures(name) for name in PAPER_PROFILES} == {
        "summarizer": (3.0, (0.1,), ()),
        "coder": (5.0, (0.05,), ()),
        "chatbot": (5.0, (0.1,), ()),
        "tool_use": (3.0, (0.05,), (0.1,)),
        "reasoning": (3.0, (0.05, 0.1), ()),
    }
    assert PAPER_PROFILES["reasoning"].decode[0].ends_with == "</think>"


def test_an_error_in_a_stage_says_which_stage() -> None:
    good = (0.1, "</think>")
    assert decode_targets("decode", [good, (0.05, "")]) == (DecodeTarget(0.1, "</think>"), DecodeTarget(0.05))
    for index in range(3):
        stages = [good] * index + [(-1.0, "")] + [good] * 2
        with pytest.raises(ContractError) as caught:
            decode_targets("final_decode", stages)
        assert caught.value.path == f"final_decode[{index}].tpot_s"
        assert caught.value.got == -1.0


def test_a_contract_that_says_nothing_asks_for_nothing() -> None:
    contract = Contract()
    assert (contract.prefill, contract.decode, contract.final_decode) == (None, (), ())
    assert (contract.profile, contract.session_id, contract.task_deadline_s) == ("", "", None)
    assert not contract.session_final, "a session ends only when its client says so"
    assert contract.value == 1.0
    assert contract.on_overload is OnOverload.BEST_EFFORT


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [
        (lambda figure: PrefillTarget(ttft_s=figure), 1e-6, 1e6),
        (lambda figure: PrefillTarget(max_slowdown=figure), 1.0, 1e6),
        (DecodeTarget, 1e-6, 1e6),
        (lambda figure: Contract(value=figure), 1e-6, 1e6),
        (lambda figure: Contract(task_deadline_s=figure), 1e-6, 1e6),
    ],
    ids=["ttft_s", "max_slowdown", "tpot_s", "value", "task_deadline_s"],
)
def test_every_figure_of_a_contract_has_bounds(make: Callable[[float], object], least: float, most: float) -> None:
    for figure in (least, most):
        make(figure)
    for figure in (0.99 * least, 1.01 * most, 1.7e308, 5e-324, math.nan, math.inf, -1.0, 0.0):
        with pytest.raises(ContractError):
            make(figure)


@pytest.mark.parametrize(("idle_prefill_s", "ttft_s"), [(0.5, 5e5), (2.0, MAX_TARGET_S), (1e-300, MIN_TARGET_S)])
def test_a_slowdown_that_is_allowed_is_a_target_that_is_allowed_however_long_the_prompt(
    idle_prefill_s: float, ttft_s: float
) -> None:
    resolved = Contract(prefill=PrefillTarget(max_slowdown=MAX_SLOWDOWN)).resolved(idle_prefill_s)
    assert resolved.prefill == PrefillTarget(ttft_s=ttft_s)
