"""Who gets what, case by case. A step of n tokens takes a little less than 10 ms + n * 1 ms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from services.slo.composer import ComposerPolicy, Limits, SchedulableRequest
from services.slo.performance import PerformanceModel
from tests.unit.services.slo.composer.works import COEFFICIENTS, LIMITS, prefill, step, stream, waiting

NEVER = math.inf
EVEN = ComposerPolicy(buffer_tpots=0.0)
SKIPS = ComposerPolicy(buffer_tpots=0.0, best_case_fraction=1.0, streams_may_skip=True)


def test_nothing_to_do() -> None:
    answer = step([])
    assert (answer.grants, answer.preempted, answer.admitted, answer.held) == ({}, (), (), ())
    assert answer.predicted_s == 0


def test_the_earliest_due_time_bounds_the_step_and_prompts_get_the_rest_of_it() -> None:
    answer = step([stream("a", due_s=0.06, tpot_s=0.1), stream("b", due_s=0.03, tpot_s=0.1), waiting("p", 50, 9.0)])
    assert answer.grants == {"a": 1, "b": 1, "p": 18}
    assert answer.limit_s == pytest.approx(0.03)
    assert answer.predicted_s == pytest.approx(0.0299)
    assert answer.admitted == ("p",)


def test_reserve_is_kept_free_before_the_due_time() -> None:
    works = [stream("a", due_s=0.03, tpot_s=0.1), waiting("p", 50, 9.0)]
    assert step(works, policy=ComposerPolicy(buffer_tpots=0.0, reserve_s=0.005)).grants["p"] == 14


def test_buffer_is_left_to_streams_unless_a_promise_needs_it() -> None:
    works = [stream("a", due_s=0.05, tpot_s=0.04)]
    policy = ComposerPolicy(buffer_tpots=0.5, best_case_fraction=1.0)
    assert step([*works, waiting("p", 50, 9.0)], policy=policy).grants == {"a": 1, "p": 19}
    assert step([*works, waiting("be", 50)], policy=policy).grants == {"a": 1, "be": 19}
    assert step([*works, waiting("p", 50, 0.0725)], policy=policy).grants == {"a": 1, "p": 29}
    assert step([*works, waiting("p", 35, 0.048)], policy=policy).grants == {"a": 1, "p": 35}, "longer than the TPOT"
    late = step([*works, waiting("p", 50, 0.065)], policy=policy)
    assert late.grants == {"a": 1, "p": 19}, "two steps take 72 ms"


def test_prompts_go_by_deadline_those_that_are_late_anyway_last() -> None:
    answer = step([waiting("loose", 30, 0.09), waiting("late", 20, 0.025), waiting("tight", 20, 0.05)])
    assert list(answer.grants)[:2] == ["tight", "loose"], "there is no time to spare for what is late"


def test_a_late_prompt_goes_first_where_it_makes_no_other_late() -> None:
    answer = step([waiting("loose", 30, 9.0), waiting("late", 20, 0.025), waiting("fine", 20, 1.0)])
    assert answer.grants == {"late": 20, "fine": 20, "loose": 24}


def test_a_prompt_is_not_given_up_as_long_as_there_is_hope() -> None:
    """20 tokens take 30 ms by the bound, and are due in 25."""
    works = [waiting("hopes", 20, 0.025), waiting("p", 30, 0.05)]
    assert list(step(works).grants) == ["p", "hopes"]
    answer = step(works, policy=ComposerPolicy(best_case_fraction=0.8))
    assert answer.grants == {"hopes": 20}, "and nothing that would make it later"


def test_a_wide_bound_is_no_reason_to_give_a_prompt_up() -> None:
    """20 tokens are expected to take 30 ms, and are due in 32; the bound is three times as much."""
    wide = PerformanceModel(COEFFICIENTS, margins=(1.0, 3.0, 3.0))
    works = [waiting("tight", 20, 0.032), waiting("be", 40, best_effort=True), stream("s", due_s=9.0, tpot_s=1.0)]
    assert step(works, policy=ComposerPolicy(), model=wide).grants == {"s": 1, "tight": 20}, "and nothing besides"
    works[0] = waiting("late", 20, 0.028)
    assert "be" in step(works, policy=ComposerPolicy(), model=wide).grants


def test_a_prompt_that_the_step_completes_ends_it_in_time() -> None:
    answer = step([waiting("tight", 10, 0.025), waiting("loose", 60, 9.0)])
    assert answer.grants == {"tight": 10, "loose": 5}
    assert answer.limit_s == pytest.approx(0.025)


def test_streams_that_are_ahead_make_room_for_a_prompt_in_need() -> None:
    ahead = [stream(f"s{index}", due_s=0.2 - 0.001 * index, tpot_s=0.03) for index in range(6)]
    everyone = {*(w.request_id for w in ahead), "p"}
    need = waiting("p", 39, 0.05)
    answer = step([*ahead, need], policy=SKIPS)
    assert answer.grants == {"s5": 1, "p": 39}, "one stream stays in the step"
    assert answer.predicted_s == pytest.approx(0.0499)
    assert set(answer.held) == {w.request_id for w in ahead[:5]}
    assert set(step([*ahead, waiting("p", 39, 9.0)], policy=SKIPS).grants) == everyone
    assert set(step([*ahead, waiting("p", 39, 0.055)], policy=SKIPS).grants) == everyone, "longer than the TPOT"
    assert step([*ahead, need], policy=replace(SKIPS, streams_may_skip=False)).held == ()


def test_streams_make_room_for_a_prompt_of_best_effort_with_their_buffer() -> None:
    """A step with the prompt and one stream takes 50 ms, the next one with all streams 16; 15 are to spare."""
    policy = ComposerPolicy(buffer_tpots=0.5, best_case_fraction=1.0)
    need = waiting("be", 39, 0.05, best_effort=True)
    ahead = [stream(f"s{index}", due_s=0.082 + 0.001 * index, tpot_s=0.03) for index in range(6)]
    answer = step([*ahead, need], policy=policy)
    assert answer.grants == {"s0": 1, "be": 39}
    near = [stream(f"s{index}", due_s=0.07 + 0.001 * index, tpot_s=0.03) for index in range(6)]
    assert step([*near, need], policy=policy).grants.keys() == {*(w.request_id for w in near), "be"}


def test_streams_that_sat_out_are_in_time_in_the_next_step() -> None:
    streams = [stream(f"s{index}", due_s=0.05 + 0.008 * index, tpot_s=0.03) for index in range(6)]
    answer = step([*streams, waiting("p", 29, 0.043)], policy=SKIPS)
    assert answer.grants["p"] == 29
    assert answer.held
    following_s = 0.0099 + 0.001 * len(streams)
    for w in streams:
        assert w.request_id in answer.grants or w.due_s >= answer.predicted_s + following_s


def test_streams_that_sit_out_end_the_step_in_time_for_the_next_one_with_all_of_them() -> None:
    """A step of the six streams takes 15.9 ms; the first of them is due in 50 ms."""
    loose = waiting("loose", 100, 9.0)

    def streams(tpot_s: float) -> list[SchedulableRequest]:
        return [stream(f"s{index}", due_s=0.05 + 0.008 * index, tpot_s=tpot_s) for index in range(6)]

    answer = step([*streams(0.03), waiting("p", 20, 0.035), loose], policy=SKIPS)
    assert answer.limit_s == pytest.approx(0.05 - 0.0159)
    assert answer.grants == {"s0": 1, "p": 20, "loose": 3}
    buffered = step([*streams(0.02), waiting("p", 20, 0.035), loose], policy=replace(SKIPS, buffer_tpots=0.5))
    assert buffered.limit_s == pytest.approx(0.058 - 0.01 - 0.0159), (
        "the first stays in the step, its buffer being gone"
    )
    assert buffered.grants == {"s0": 1, "p": 20, "loose": 1}


def test_a_prompt_gets_what_it_needs_of_this_step_if_the_next_ends_too_late() -> None:
    """Best effort that has just begun to decode keeps its buffer only where no promised prompt is late for it."""
    fresh = stream("fresh", due_s=0.05, tpot_s=0.05, best_effort=True)
    policy = ComposerPolicy(buffer_tpots=0.5, best_case_fraction=1.0)
    assert step([fresh, waiting("p", 30, 9.0)], policy=policy).grants == {"fresh": 1, "p": 14}
    assert step([fresh, waiting("p", 30, 0.05)], policy=policy).grants["p"] == 30


def test_streams_do_not_make_room_where_memory_is_what_binds() -> None:
    ahead = [stream(f"s{index}", due_s=0.2, tpot_s=0.05) for index in range(6)]
    works = [*ahead, waiting("p", 39, 0.05), waiting("large", 400, 9.0)]
    assert step(works, free_blocks=1000, policy=SKIPS).held != ()
    assert step(works, free_blocks=30, policy=SKIPS).held == ()


def test_a_stream_ahead_still_comes_in_time_when_it_should_for_an_even_stream() -> None:
    ahead = stream("ahead", due_s=5.0, tpot_s=0.05, wanted_s=0.04)
    answer = step([ahead, waiting("p", 60, 0.08)])
    assert answer.grants == {"ahead": 1, "p": 29}


def test_an_even_stream_is_given_up_before_a_promise() -> None:
    """Once the wish cannot be met, only the due time counts."""
    wish = stream("wish", due_s=0.06, tpot_s=0.1, wanted_s=-0.01)
    answer = step([wish, waiting("p", 60, 0.5)])
    assert answer.limit_s == pytest.approx(0.06)
    assert answer.grants == {"wish": 1, "p": 49}


def test_what_is_late_is_served_at_once_and_bounds_nothing() -> None:
    works = [stream("late", due_s=-1.0, tpot_s=0.03), stream("fine", due_s=0.05, tpot_s=0.1), waiting("p", 60, 9.0)]
    answer = step(works)
    assert answer.grants == {"late": 1, "fine": 1, "p": 18}
    assert answer.limit_s == pytest.approx(0.03), "the pace of the late one still keeps steps short"


def test_streams_that_are_all_late_leave_room_for_prompts() -> None:
    late = [stream(f"s{index}", due_s=-1.0, tpot_s=0.005) for index in range(4)]
    answer = step([*late, waiting("p", 60, 9.0)])
    assert answer.grants["p"] == 3, "a quarter of what the streams take"


def test_streams_that_can_wait_are_held_for_one_that_cannot() -> None:
    tight = stream("tight", due_s=0.013, tpot_s=0.02)
    loose = [stream(f"s{index}", due_s=0.1, tpot_s=0.1) for index in range(5)]
    answer = step([*loose, tight])
    assert answer.grants.keys() >= {"tight"}
    assert answer.predicted_s <= 0.013
    assert len(answer.held) == 3


def test_without_a_stream_a_step_is_as_long_as_pays_or_as_those_to_come_allow() -> None:
    """A step of one token takes 10.9 ms; what the prompt will be owed later bounds nothing now."""
    assert step([waiting("p", 60, 9.0, tpot_s=0.04)]).grants == {"p": 60}
    assert step([waiting("p", 60, 9.0)], policy=ComposerPolicy(max_step_multiple=4.0)).grants == {"p": 33}
    assert step([waiting("p", 60, 9.0)], policy=ComposerPolicy(step_cap_s=0.03)).grants == {"p": 20}
    assert step([waiting("be", 60)], policy=ComposerPolicy(step_cap_s=0.03)).grants == {"be": 20}
    assert step([waiting("be", 60)]).grants == {"be": 60}
    assert step([waiting("p", 60, 9.0)], policy=ComposerPolicy(step_cap_s=1e-6)).grants == {"p": 11}


def test_best_effort_fills_what_is_left_shortest_first_and_ages() -> None:
    works = [waiting("long", 30), waiting("short", 20), stream("be", tpot_s=NEVER)]
    policy = ComposerPolicy(step_cap_s=0.045, ageing=0.1)
    assert step(works, policy=policy).grants == {"be": 1, "short": 20, "long": 14}
    works[0].waiting_since_s = -0.2
    assert list(step(works, policy=policy).grants) == ["be", "long", "short"]


def test_streams_of_best_effort_go_beside_promised_prompts_that_are_in_time_all_the_same() -> None:
    works = [stream("a", due_s=0.05, tpot_s=0.1), *(stream(f"be{i}", tpot_s=NEVER) for i in range(2))]
    assert step([*works, waiting("p", 300, 9.0)]).grants == {"a": 1, "be0": 1, "be1": 1, "p": 37}
    assert step([*works, waiting("p", 39, 0.051)]).grants == {"a": 1, "p": 39}, "the prompt has no time to spare"


def test_streams_of_best_effort_get_half_of_the_room_beside_promised_prompts_the_oldest_first() -> None:
    best_effort = [stream(f"be{i}", tpot_s=NEVER, waiting_since_s=float(-i)) for i in range(8)]
    answer = step([stream("a", due_s=0.021, tpot_s=0.1), *best_effort, waiting("p", 300, 90.0)])
    assert answer.grants == {"a": 1, "be7": 1, "be6": 1, "be5": 1, "be4": 1, "be3": 1, "p": 5}


def test_where_not_all_prompts_can_be_in_time_the_longest_is_given_up() -> None:
    works = [waiting("long", 50, 0.07), waiting("b", 20, 0.075), waiting("c", 20, 0.08)]
    assert list(step(works).grants) == ["b", "c", "long"]
    works[0].due_s = 0.04
    assert list(step(works).grants) == ["b", "c", "long"], "late in any case"
    assert list(step([waiting("long", 50, 0.07), waiting("b", 5, 0.085)]).grants) == ["long", "b"], "both can be"


def test_prompts_of_best_effort_do_not_make_a_promise_wait_for_a_long_step() -> None:
    policy, longest_s = ComposerPolicy(max_step_multiple=3.0), 3 * 0.011
    alone = step([waiting("be", 60)], policy=policy)
    assert longest_s - 0.002 <= alone.predicted_s <= longest_s, "nor one that comes during it"
    shared = step([waiting("p", 10, 9.0), waiting("be", 60)], policy=policy)
    assert shared.grants["p"] == 10
    assert longest_s - 0.002 <= shared.predicted_s <= longest_s
    beside_decodes = [*(stream(f"s{index}", tpot_s=NEVER) for index in range(6)), waiting("be", 60)]
    assert step(beside_decodes, policy=policy).grants["be"] > 1, "decodes do not starve it"


def test_promised_prompts_get_what_best_effort_streams_make_of_the_bound() -> None:
    """Nothing may be known of steps of prompts alone: their bound is wide."""
    model = PerformanceModel(COEFFICIENTS, margins=(1.0, 1.0, 2.0))
    works = [waiting("p", 60, 9.0, tpot_s=0.05), stream("be", tpot_s=NEVER), waiting("also be", 60)]
    assert step(works, model=model, policy=ComposerPolicy(step_cap_s=0.05)).grants == {"p": 39, "be": 1}


def test_best_effort_whose_contract_may_be_kept_bounds_the_step_where_no_promise_is_short_of_time() -> None:
    hopeful = stream("be", due_s=0.03, tpot_s=0.04, best_effort=True)
    policy = ComposerPolicy(buffer_tpots=0.0)
    assert step([hopeful, waiting("p", 60, 9.0)], policy=policy).grants == {"be": 1, "p": 19}
    assert step([hopeful, waiting("also be", 60)], policy=policy).grants == {"be": 1, "also be": 19}
    in_need = step([hopeful, waiting("p", 60, 0.072)], policy=policy)
    assert in_need.grants["p"] == 60, "the promise would be late if the step were short"
    late = stream("be", due_s=-0.01, tpot_s=0.04, best_effort=True)
    assert step([late, waiting("p", 60, 9.0)], policy=policy).grants["p"] == 60


def test_best_effort_whose_contract_may_be_kept_goes_before_what_is_lost_or_has_none() -> None:
    works = [
        waiting("none", 20),
        waiting("lost", 20, -1.0, best_effort=True),
        waiting("long", 40, 0.09, best_effort=True),
        waiting("short", 20, 0.1, best_effort=True),
    ]
    assert list(step(works).grants)[:2] == ["long", "short"], "by due time"
    works[2].due_s = works[3].due_s = 0.055
    assert list(step(works).grants)[:2] == ["short", "long"], "not both can be in time"


def test_best_effort_gives_way_to_newcomers_while_somebody_with_a_contract_found_no_room() -> None:
    streams = [stream(f"s{index}", due_s=0.06, tpot_s=0.1) for index in range(4)]
    unpromised, batch = waiting("unpromised", 40, -1.0, best_effort=True), waiting("batch", 30)
    policy = ComposerPolicy(buffer_tpots=0.0, best_effort_step_multiple=1.3)
    promised_s = step(streams, policy=policy).predicted_s
    assert step([*streams, batch], policy=policy).grants["batch"] == 30, "nobody was turned away"
    crowded = step([*streams, unpromised, batch], policy=policy)
    assert 1.2 * promised_s < crowded.predicted_s <= 1.3 * promised_s
    free = step([*streams, unpromised, batch], policy=replace(policy, best_effort_step_multiple=math.inf))
    assert free.grants["batch"] == 30
    nearly_empty = step([streams[0], unpromised], policy=policy)
    assert 0.014 < nearly_empty.predicted_s <= 0.015, "a quarter of what the stream allows"
    assert step([unpromised, batch], policy=policy).grants["batch"] == 30, "nothing is promised"


def test_a_best_effort_stream_joins_only_within_the_bound() -> None:
    promised = stream("promised", due_s=0.0115, tpot_s=0.1)
    joins = stream("be", tpot_s=NEVER)
    assert step([promised, joins]).held == ("be",)
    promised.due_s = 0.0125
    assert step([promised, joins]).grants == {"promised": 1, "be": 1}


def test_best_effort_gives_up_its_memory_for_a_promise_the_last_come_first() -> None:
    old = prefill("old", 8, computed=20, waiting_since_s=-9.0)
    young = stream("young", 30, tpot_s=NEVER, waiting_since_s=-1.0)
    answer = step([old, young, waiting("p", 24, 9.0)], free_blocks=1)
    assert answer.preempted == ("young",)
    assert answer.admitted == ("p",)
    assert answer.grants == {"p": 24, "old": 8}


def test_best_effort_gives_up_its_place_for_a_promise() -> None:
    limits = Limits(64, 2, 4)
    works = [stream("a", tpot_s=NEVER), stream("b", tpot_s=NEVER, waiting_since_s=1.0), waiting("p", 4, 9.0)]
    answer = step(works, limits=limits)
    assert (answer.preempted, answer.admitted) == (("b",), ("p",))


def test_nobody_is_preempted_for_a_promise_that_would_not_fit_even_so() -> None:
    answer = step([stream("be", tpot_s=NEVER), waiting("p", 60, 9.0)], free_blocks=2)
    assert (answer.preempted, answer.admitted, dict(answer.grants)) == ((), (), {"be": 1})


def test_pinned_best_effort_keeps_its_memory() -> None:
    answer = step([stream("be", 30, tpot_s=NEVER, pinned=True), waiting("p", 24, 9.0)], free_blocks=1)
    assert (answer.preempted, answer.admitted) == ((), ())


def test_what_gave_up_its_memory_is_in_the_step_no_more_even_if_its_contract_could_be_kept() -> None:
    needs = stream("needs", 8, due_s=0.05, tpot_s=0.1, held_blocks=2)
    hopeful = prefill("hopeful", 20, 9.0, computed=8, best_effort=True)
    answer = step([needs, hopeful, waiting("p", 8, 5.0)], free_blocks=0)
    assert answer.preempted == ("hopeful",)
    assert answer.grants == {"needs": 1, "p": 8}
    answer = step([needs, hopeful], free_blocks=0)
    assert answer.preempted == ("hopeful",)
    assert answer.grants == {"needs": 1}


def test_a_promised_stream_without_a_block_gets_one() -> None:
    needs = stream("needs", 8, due_s=0.05, tpot_s=0.1, held_blocks=2)
    be = stream("be", 5, tpot_s=NEVER)
    loose = stream("loose", 5, due_s=0.5, tpot_s=0.5)
    answer = step([needs, be, loose], free_blocks=0)
    assert answer.preempted == ("be",)
    assert answer.grants == {"needs": 1, "loose": 1}
    answer = step([needs, loose], free_blocks=0)
    assert answer.preempted == ("loose",)
    assert answer.grants == {"needs": 1}
    answer = step([needs, stream("tight", 5, due_s=0.04, tpot_s=0.1)], free_blocks=0)
    assert (answer.preempted, answer.held, dict(answer.grants)) == ((), ("needs",), {"tight": 1})


def test_a_best_effort_stream_gets_a_block_from_one_that_came_later() -> None:
    old = stream("old", 8, tpot_s=NEVER, held_blocks=2, waiting_since_s=-5.0)
    young = stream("young", 5, tpot_s=NEVER)
    answer = step([young, old], free_blocks=0)
    assert (answer.preempted, dict(answer.grants)) == (("young",), {"old": 1})
    young.held_blocks, young.computed_tokens, old.held_blocks = 2, 8, 3
    answer = step([young, old], free_blocks=0)
    assert (answer.preempted, answer.held, dict(answer.grants)) == ((), ("young",), {"old": 1})


def test_a_promise_that_waits_for_memory_is_not_overtaken_unless_it_is_late() -> None:
    works = [waiting("large", 60, 0.2), waiting("small", 8, 9.0), waiting("be", 4), stream("s", due_s=5.0)]
    assert step(works, free_blocks=4).admitted == ()
    works[0].due_s = 0.01
    assert step(works, free_blocks=4).admitted == ("small", "be")


def test_best_effort_that_has_come_to_the_front_is_not_overtaken_to_memory() -> None:
    works = [stream("s", due_s=5.0), waiting("small", 4), waiting("old", 60, waiting_since_s=-99.0)]
    assert step(works, free_blocks=4).admitted == ()
    assert step(works, free_blocks=4, policy=ComposerPolicy(ageing=0.0)).admitted == ("small",)


def test_memory_held_back_for_one_is_given_to_another_when_nothing_runs() -> None:
    assert step([waiting("large", 60, 0.2), waiting("be", 4)], free_blocks=4).admitted == ("be",)


def test_blocks_that_running_prompts_will_take_are_not_given_away() -> None:
    """vLLM gives a prompt its blocks chunk by chunk."""
    chunked = prefill("chunked", 40, 9.0, computed=8, held_blocks=2)
    assert step([chunked, waiting("new", 12, 9.0)], free_blocks=12).admitted == ()
    assert step([chunked, waiting("new", 12, 9.0)], free_blocks=13).admitted == ("new",)


def test_a_prompt_is_computed_only_as_far_as_there_are_blocks() -> None:
    assert step([prefill("p", 40, 9.0, computed=8, held_blocks=2)], free_blocks=3).grants == {"p": 12}


def test_pulls_get_blocks_and_a_place_but_no_tokens() -> None:
    answer = step([waiting("pulls", 20, 0.1, pulls_kv=True), waiting("be", 9, pulls_kv=True)], free_blocks=8)
    assert (answer.admitted, dict(answer.grants)) == (("pulls", "be"), {})
    under_way = prefill("pulls", 20, pulls_kv=True)
    assert step([under_way]).grants == {}
    limits = Limits(64, 1, 4)
    assert step([under_way, waiting("p", 4, 9.0)], limits=limits).admitted == ()


def test_landed_kv_is_served_like_a_stream() -> None:
    landed = prefill("landed", 1, due_s=0.03, computed=20, tpot_s=0.1)
    answer = step([landed, waiting("p", 60, 9.0)])
    assert answer.grants == {"landed": 1, "p": 19}
    assert (answer.shape.prefill_requests, answer.shape.decode_requests) == (2, 0)


def test_drafts_are_verified_as_far_as_they_fit() -> None:
    a, b = (stream(name, due_s=due_s, tpot_s=0.1, draft_tokens=4) for name, due_s in (("a", 0.5), ("b", 0.4)))
    assert step([a, b]).grants == {"a": 5, "b": 5}
    tight = stream("tight", due_s=0.018, tpot_s=0.1)
    assert step([a, b, tight]).grants == {"a": 1, "b": 5, "tight": 1} | {"a": 2}
    assert step([a, b], limits=Limits(5, 8, 4)).grants == {"a": 1, "b": 4}
    a.computed_tokens, a.held_blocks = 6, 2
    assert step([a], free_blocks=0).grants == {"a": 2}


def test_drafts_come_before_prompts() -> None:
    drafting = stream("drafting", due_s=0.03, tpot_s=0.1, draft_tokens=4)
    assert step([drafting, waiting("p", 60, 9.0)]).grants == {"drafting": 5, "p": 15}


def test_tokens_of_a_step_go_to_the_streams_due_first() -> None:
    works = [stream("c", due_s=0.3), stream("a", due_s=0.1), stream("b", due_s=0.2)]
    answer = step(works, limits=Limits(2, 8, 4))
    assert (dict(answer.grants), answer.held) == ({"a": 1, "b": 1}, ("c",))


def test_a_request_without_a_promise_is_best_effort() -> None:
    works = [waiting("none", 4), waiting("p", 50, 9.0), waiting("malformed", 4, math.nan, tpot_s=0.1)]
    assert list(step(works).grants) == ["p", "malformed", "none"]


def test_a_promise_without_a_due_time_comes_before_best_effort() -> None:
    assert list(step([waiting("be", 4), waiting("p", 20, tpot_s=0.1), waiting("due", 20, 9.0)]).grants) == [
        "due",
        "p",
        "be",
    ]


def test_a_deadline_that_passed_before_the_request_came_is_served_after_those_that_have_not() -> None:
    answer = step([waiting("passed", 60, -5.0), waiting("p", 20, 0.08), waiting("be", 4)])
    assert list(answer.grants) == ["p", "passed"]


@pytest.mark.parametrize("now_s", [math.nan, math.inf, -math.inf])
def test_a_clock_that_shows_no_time_is_an_error(now_s: float) -> None:
    with pytest.raises(ValueError, match="now_s"):
        step([stream("a")], now_s=now_s)


@pytest.mark.parametrize(
    "option",
    [
        {"step_cap_s": 0.0},
        {"step_cap_s": math.nan},
        {"decode_step_multiple": 1.0},
        {"decode_step_multiple": math.nan},
        {"max_step_multiple": 0.9},
        {"best_case_fraction": 0.0},
        {"best_case_fraction": math.nan},
        {"reserve_s": -1.0},
        {"buffer_tpots": math.inf},
        {"ageing": -0.1},
    ],
)
def test_a_policy_that_makes_no_sense_is_an_error(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        ComposerPolicy(**option)  # type: ignore[arg-type]


def test_limits_that_make_no_sense_are_an_error() -> None:
    with pytest.raises(ValueError, match="max_step_tokens"):
        Limits(0, LIMITS.max_running_requests, LIMITS.block_tokens)
