"""What the demo asks for, scaled to the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli.demo.machine import Machine
from cli.demo.targets import (
    HEADROOM,
    MOST_HEADROOM,
    MOST_TEXTS,
    Ask,
    Targets,
    stretch_for,
    texts_in_long_prompt,
)
from slos_serve import DecodeTarget, OnOverload, PrefillTarget
from tests.unit.cli.demo.outcomes import achieved

MACHINE = Machine(
    workers=2, prefill_overhead_s=0.04, per_prompt_token_s=0.001, decode_step_s=0.034, second_token_s=0.036
)
BURST = [
    *(Ask("chatbot", 42) for _ in range(4)),
    *(Ask("coder", 48) for _ in range(4)),
    *(Ask("tool_use", 49) for _ in range(4)),
    *(Ask("summarizer", 380) for _ in range(4)),
]


def slower(machine: Machine, times: float) -> Machine:
    return replace(
        machine,
        prefill_overhead_s=machine.prefill_overhead_s * times,
        per_prompt_token_s=machine.per_prompt_token_s * times,
        decode_step_s=machine.decode_step_s * times,
        second_token_s=machine.second_token_s * times,
    )


def test_the_ratios_of_the_paper_stay() -> None:
    stretch = stretch_for(MACHINE, BURST)
    same_prompt = {
        profile: stretch.targets(Ask(profile, 100), MACHINE)
        for profile in ("chatbot", "coder", "tool_use", "summarizer")
    }
    tight, loose = same_prompt["tool_use"], same_prompt["chatbot"]
    assert loose.ttft_s / tight.ttft_s == pytest.approx(5 / 3)
    assert loose.tpot_s / tight.tpot_s == pytest.approx(2)
    assert (same_prompt["summarizer"].ttft_s, same_prompt["summarizer"].tpot_s) == (tight.ttft_s, loose.tpot_s)
    assert (same_prompt["coder"].ttft_s, same_prompt["coder"].tpot_s) == (loose.ttft_s, tight.tpot_s)


@pytest.mark.parametrize("times", [0.5, 4.0, 30.0])
def test_a_machine_that_is_slower_is_asked_for_later_tokens(times: float) -> None:
    stretch, slow_stretch = stretch_for(MACHINE, BURST), stretch_for(slower(MACHINE, times), BURST)
    for ask in BURST:
        targets, slow = stretch.targets(ask, MACHINE), slow_stretch.targets(ask, slower(MACHINE, times))
        assert slow.ttft_s == pytest.approx(times * targets.ttft_s)
        assert slow.tpot_s == pytest.approx(times * targets.tpot_s)


@pytest.mark.parametrize("machine", [MACHINE, replace(MACHINE, workers=1), replace(MACHINE, prefill_overhead_s=0.4)])
def test_the_burst_fits_with_headroom_in_order_of_due_times(machine: Machine) -> None:
    stretch = stretch_for(machine, BURST)
    due = sorted((stretch.targets(ask, machine).ttft_s, ask.prompt_tokens) for ask in BURST)
    computed_s, slacks = machine.prefill_overhead_s, []
    for due_s, tokens in due:
        computed_s += machine.per_prompt_token_s * tokens / machine.workers
        slacks.append(due_s / computed_s)
    assert min(slacks) >= HEADROOM - 1e-9
    if stretch.ttft > 1:
        assert min(slacks) == pytest.approx(HEADROOM), "no target is looser than it must be"


def test_an_uncertain_machine_is_given_more_time_up_to_a_limit() -> None:
    stretches = [stretch_for(replace(MACHINE, bound_ratio=ratio), BURST).ttft for ratio in (1.0, 1.25, 5.0)]
    assert stretches[1] == pytest.approx(1.25 * stretches[0])
    assert stretches[2] == pytest.approx(MOST_HEADROOM / HEADROOM * stretches[0])


def test_no_target_is_tighter_than_the_paper_s() -> None:
    assert stretch_for(replace(MACHINE, workers=1000), BURST[:1]).ttft == 1.0


def test_a_hand_over_makes_tokens_due_later() -> None:
    apart = replace(MACHINE, second_token_s=0.5)
    tpot_s = stretch_for(apart, BURST).targets(Ask("coder", 40), apart).tpot_s
    assert tpot_s == pytest.approx(1.5)


def test_long_prompts_are_long_enough_to_make_short_ones_late() -> None:
    assert texts_in_long_prompt(MACHINE, short_tokens=36, tokens_per_text=370) == 2
    assert texts_in_long_prompt(replace(MACHINE, prefill_overhead_s=0.0), 36, 370) == 1
    assert texts_in_long_prompt(replace(MACHINE, prefill_overhead_s=10.0), 36, 370) == MOST_TEXTS


def test_targets_are_kept_by_what_is_within_both() -> None:
    targets = Targets(ttft_s=0.8, tpot_s=0.3)
    assert targets.kept_by(achieved(0.8, 0.3))
    assert not targets.kept_by(achieved(0.81, 0.1))
    assert not targets.kept_by(achieved(0.1, 0.31))


def test_targets_are_asked_for_under_the_name_of_their_profile() -> None:
    contract = Targets(ttft_s=0.8, tpot_s=0.3).contract("coder", OnOverload.REFUSE)
    assert contract.profile == "coder"
    assert contract.prefill == PrefillTarget(ttft_s=0.8)
    assert contract.decode == (DecodeTarget(0.3),)
    assert contract.on_overload is OnOverload.REFUSE
