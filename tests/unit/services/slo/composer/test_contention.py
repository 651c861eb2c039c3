"""Who is served beside whom, and who is not: in each case another order of service would give another step.

A step of n tokens takes 9.9 + n ms. Without streams it lasts 87.2 ms at most. Best effort with a contract beside
promised work fills 12 ms, or a quarter of the limit, which is 21.8 ms.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from services.slo.composer import ComposerPolicy, Limits, SchedulableRequest
from services.slo.performance import PerformanceModel
from tests.unit.services.slo.composer.test_compose import SKIPS
from tests.unit.services.slo.composer.works import COEFFICIENTS, prefill, step, stream, waiting

PLAIN = ComposerPolicy(buffer_tpots=0.0, best_case_fraction=1.0)
MANY_TOKENS = Limits(2048, 16, 4)


def batch(name: str, context: int = 5, since_s: float = 0.0, **options: object) -> SchedulableRequest:
    """A stream of best effort without a contract."""
    work = stream(name, context, tpot_s=math.inf, waiting_since_s=since_s)
    for option, value in options.items():
        setattr(work, option, value)
    return work


def test_best_effort_streams_stop_where_the_tokens_of_a_step_end() -> None:
    works = [stream("s", due_s=0.5, tpot_s=0.5), *(batch(f"be{index}") for index in range(3))]
    answer = step(works, limits=Limits(3, 8, 4))
    assert sum(answer.grants.values()) == 3
    assert len(answer.held) == 1


def test_best_effort_streams_bring_their_drafts() -> None:
    assert step([batch("be", draft_tokens=3)]).grants == {"be": 4}
    works = [stream("s", due_s=0.0135, tpot_s=0.5), batch("be", draft_tokens=3)]
    assert step(works).grants == {"s": 1, "be": 2}, "as far as they fit"


def test_best_effort_with_a_contract_preempts_nobody() -> None:
    """A stream's draft takes the block that was free for the prompt."""
    works = [
        stream("s", 7, due_s=0.5, tpot_s=0.5, held_blocks=2, draft_tokens=4),
        waiting("be", 8, 0.5, best_effort=True),
        batch("victim"),
    ]
    answer = step(works, free_blocks=2)
    assert answer.grants == {"s": 5, "victim": 1}
    assert (answer.admitted, answer.preempted) == ((), ())


def test_best_effort_that_lacks_memory_stops_no_promise() -> None:
    """Drafts take two of the four blocks that were free for both prompts; the promised one needs one."""
    drafting = [stream(name, 7, due_s=0.5, tpot_s=0.5, held_blocks=2, draft_tokens=4) for name in ("a", "b")]
    works = [*drafting, waiting("be", 12, 0.3, best_effort=True), waiting("p", 4, 9.0)]
    assert step(works, free_blocks=4).admitted == ("p",)


def test_attainable_best_effort_limits_no_step_in_which_a_stream_is_held() -> None:
    works = [
        stream("needy", 8, due_s=0.5, tpot_s=0.5, held_blocks=2),
        stream("be", due_s=0.03, tpot_s=0.04, best_effort=True, pinned=True),
        prefill("p", 60, 9.0, pinned=True),
    ]
    answer = step(works, free_blocks=0)
    assert answer.grants["p"] == 60
    assert "needy" in answer.held
    assert step(works, free_blocks=1).grants["p"] < 20, "nobody is held, and it limits the step to 30 ms"


def test_attainable_prompts_take_no_time_that_a_prompt_in_need_has_extended_the_step_by() -> None:
    ahead = [stream(f"s{index}", due_s=0.2, tpot_s=0.03) for index in range(6)]
    works = [*ahead, waiting("p", 39, 0.0595), waiting("be", 4, 0.3, best_effort=True)]
    answer = step(works, policy=SKIPS)
    assert answer.grants["p"] == 39
    assert "be" not in answer.grants


@pytest.mark.parametrize(("running", "tokens"), [(True, 4), (False, 1)])
def test_attainable_streams_draft_only_once_every_promised_prompt_is_admitted(running: bool, tokens: int) -> None:
    prompt = prefill("p", 8, 9.0) if running else waiting("p", 8, 9.0)
    works = [prompt, stream("be", due_s=0.5, tpot_s=0.5, best_effort=True, draft_tokens=3)]
    assert step(works).grants == {"p": 8, "be": tokens}


def test_promised_prompts_leave_best_effort_streams_nothing_while_a_stream_is_held() -> None:
    works = [
        stream("needy", 8, due_s=0.5, tpot_s=0.5, held_blocks=2),
        prefill("p", 300, 9.0, pinned=True),
        *(batch(f"be{index}", pinned=True) for index in range(2)),
    ]
    assert step(works, free_blocks=0, limits=MANY_TOKENS).grants == {"p": 77}
    assert step(works[1:], limits=MANY_TOKENS).grants == {"p": 76, "be0": 1}


def test_of_what_fits_no_limit_one_is_served() -> None:
    """A token beside so much context takes 110 ms."""
    model = PerformanceModel(replace(COEFFICIENTS, per_attention_pair_s=1e-6))
    works = [prefill(name, 10, 9.0, computed=100_000) for name in ("a", "b")]
    answer = step(works, model=model)
    assert answer.grants == {"a": 1}
    assert answer.held == ("b",)
    assert answer.predicted_s > 0.1
    assert answer.limit_s == pytest.approx(answer.predicted_s)


def test_a_contract_that_is_lost_in_this_step_keeps_no_other_from_joining() -> None:
    works = [
        stream("lost", due_s=0.0105, tpot_s=0.5, best_effort=True),
        stream("kept", due_s=0.03, tpot_s=0.5, best_effort=True),
        waiting("p", 60, 9.0),
    ]
    answer = step(works)
    assert answer.limit_s == pytest.approx(0.03)
    assert answer.grants["p"] == 18
    assert answer.grants["kept"] == 1


def test_attainable_streams_take_no_block_that_a_promised_prompt_needs() -> None:
    works = [stream("be", 8, due_s=0.5, tpot_s=0.5, best_effort=True, held_blocks=2), waiting("p", 60, 9.0)]
    answer = step(works, free_blocks=15)
    assert answer.grants == {"p": 60}
    assert (answer.preempted, answer.held) == ((), ("be",))
    assert step(works, free_blocks=16).grants == {"p": 60, "be": 1}


@pytest.mark.parametrize(("due_s", "tokens"), [(0.13, 60), (0.14, 19)])
def test_attainable_streams_leave_promised_prompts_a_quarter_of_their_headroom(due_s: float, tokens: int) -> None:
    """Steps of 30 ms leave 76 ms of 130, or 86 of 140."""
    works = [stream("be", due_s=0.03, tpot_s=0.04, best_effort=True), waiting("p", 60, due_s)]
    assert step(works).grants["p"] == tokens


def test_a_block_that_an_attainable_stream_takes_is_gone() -> None:
    works = [stream("be", 8, due_s=0.5, tpot_s=0.5, best_effort=True, held_blocks=2), waiting("other", 4)]
    answer = step(works, free_blocks=1)
    assert answer.grants == {"be": 1}
    assert answer.admitted == ()


def test_attainable_prompts_wait_their_turn_while_a_promised_one_lacks_memory() -> None:
    works = [waiting("p", 60, 9.0), prefill("be", 40, 0.5, best_effort=True, pinned=True)]
    assert step(works, free_blocks=4, policy=PLAIN).grants == {"be": 11}
    assert step(works[1:], free_blocks=4, policy=PLAIN).grants == {"be": 40}


def test_an_attainable_prompt_without_memory_leaves_its_turn_to_the_next() -> None:
    works = [
        stream("s", due_s=0.5, tpot_s=0.5),
        waiting("large", 50, 0.07, best_effort=True),
        waiting("small", 20, 0.075, best_effort=True),
    ]
    hopes = replace(PLAIN, best_case_fraction=0.8)
    assert step(works, free_blocks=5, policy=hopes).grants == {"s": 1, "small": 20}
    both = step(works, free_blocks=100, policy=hopes)
    assert both.grants == {"s": 1, "large": 50, "small": 6}, "not both are in time by the bound"


def test_attainable_streams_go_before_attainable_prompts() -> None:
    """Beside a held stream neither joins promised work, and 21.8 ms are left to both."""
    works = [
        stream("needy", 8, due_s=0.5, tpot_s=0.5, held_blocks=2),
        stream("be", due_s=0.5, tpot_s=0.5, best_effort=True, pinned=True, draft_tokens=3),
        prefill("prompt", 60, 0.9, best_effort=True, pinned=True),
    ]
    assert step(works, free_blocks=0, policy=PLAIN).grants == {"be": 3, "prompt": 8}


def test_many_best_effort_streams_do_not_go_before_an_older_prompt() -> None:
    """Where they would take more than half of the tokens, or of the time, that is left."""
    old, streams = waiting("old", 4, waiting_since_s=-10.0), [batch(f"be{index}") for index in range(6)]
    few_tokens = step([stream("s", due_s=0.5, tpot_s=0.5), *streams, old], limits=Limits(8, 16, 4))
    assert few_tokens.grants["old"] == 4
    little_time = step([stream("s", due_s=0.0185, tpot_s=0.5), *streams, old], limits=MANY_TOKENS)
    assert little_time.grants["old"] == 4
    plenty = step([stream("s", due_s=0.5, tpot_s=0.5), *streams, old], limits=MANY_TOKENS)
    assert list(plenty.grants)[1:] == [*(f"be{index}" for index in range(6)), "old"]


@pytest.mark.parametrize("option", ["max_step_multiple", "min_step_multiple", "best_effort_step_multiple"])
@pytest.mark.parametrize("value", [0.9, math.nan])
def test_multiples_of_a_step_are_not_below_it(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        ComposerPolicy(**{option: value})  # type: ignore[arg-type]


def test_the_longest_step_of_a_machine_that_takes_no_time_is_the_cap() -> None:
    assert ComposerPolicy(step_cap_s=0.05).longest_step_s(0.0) == 0.05
    assert ComposerPolicy(step_cap_s=0.05).longest_step_s(0.001) == pytest.approx(0.008)
    assert ComposerPolicy(step_cap_s=0.05).longest_step_s(0.04) == pytest.approx(0.08)
    assert ComposerPolicy(step_cap_s=0.05).longest_step_s(0.02) == pytest.approx(0.05)
