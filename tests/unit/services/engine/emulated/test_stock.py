"""Steps of the baseline: composed without knowing promises."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.engine.emulated.stock import compose_stock
from services.slo.composer import Composition, Limits, SchedulableRequest
from services.slo.kv_blocks import blocks_for
from services.slo.performance import PerformanceCoefficients, PerformanceModel

LIMITS = Limits(max_step_tokens=16, max_running_requests=4, block_tokens=4)
MODEL = PerformanceModel(PerformanceCoefficients(0.01, 0.001, 0.0, 0.0, "measured"))


def decode(name: str, computed: int) -> SchedulableRequest:
    return SchedulableRequest(name, computed, 1, True, True, blocks_for(computed, 4))


def prefill(name: str, computed: int, pending: int) -> SchedulableRequest:
    return SchedulableRequest(name, computed, pending, False, True, blocks_for(computed + pending, 4))


def queued(name: str, pending: int, pulls_kv: bool = False) -> SchedulableRequest:
    return SchedulableRequest(name, 0, pending, False, False, 0, pulls_kv=pulls_kv)


def pulling(name: str) -> SchedulableRequest:
    return SchedulableRequest(name, 0, 1, False, True, 1, pulls_kv=True)


def compose(
    running: list[SchedulableRequest], waiting: list[SchedulableRequest] | None = None, free_blocks: int = 100
) -> Composition:
    return compose_stock([*running, *(waiting or [])], free_blocks, MODEL, LIMITS)


def test_nothing_to_do() -> None:
    plan = compose([])
    assert (plan.grants, plan.admitted, plan.preempted, plan.shape.tokens) == ({}, (), (), 0)


def test_decodes_come_before_prompts_that_were_admitted_earlier() -> None:
    plan = compose([prefill("long", 10, 50), decode("a", 5), decode("b", 6)], [queued("new", 3)])
    assert plan.grants == {"a": 1, "b": 1, "long": 14}
    assert plan.admitted == ()
    shape = plan.shape
    assert (shape.decode_requests, shape.decode_tokens, shape.decode_context_tokens) == (2, 2, 11)
    assert (shape.prefill_requests, shape.prefill_tokens) == (1, 14)
    assert shape.prefill_attention_pairs == 14 * (10 + 7)


def test_every_place_among_the_running_is_given_away() -> None:
    limits = Limits(100, 4, 4)
    plan = compose_stock([decode("a", 5), *(queued(f"q{index}", 2) for index in range(5))], 100, MODEL, limits)
    assert plan.admitted == ("q0", "q1", "q2")


def test_queue_is_served_from_its_head_in_what_is_left_of_the_step() -> None:
    plan = compose([decode("a", 5)], [queued("x", 10), queued("y", 10), queued("z", 1)])
    assert plan.admitted == ("x", "y")
    assert plan.grants == {"a": 1, "x": 10, "y": 5}


def test_head_of_the_queue_that_does_not_fit_is_not_overtaken() -> None:
    assert compose([], [queued("big", 30), queued("small", 1)], free_blocks=7).admitted == ()


def test_pulls_get_blocks_and_a_place_but_no_tokens() -> None:
    plan = compose([prefill("long", 0, 60)], [queued("pulls", 9, pulls_kv=True), queued("waits", 1)])
    assert plan.admitted == ("pulls",)
    assert plan.grants == {"long": 16}
    assert compose([pulling(name) for name in "abcd"], [queued("x", 1)]).admitted == ()


def test_arrived_kv_is_worked_on_before_other_prompts() -> None:
    arrived = SchedulableRequest("arrived", 20, 1, False, True, 6)
    plan = compose([prefill("long", 0, 60), arrived])
    assert plan.grants == {"arrived": 1, "long": 15}
    assert (plan.shape.prefill_requests, plan.shape.decode_requests) == (2, 0)


def test_youngest_gives_way_when_blocks_run_out() -> None:
    plan = compose([decode("old", 8), decode("mid", 8), decode("young", 9)], [queued("new", 1)], free_blocks=0)
    assert plan.preempted == ("young",)
    assert plan.grants == {"old": 1, "mid": 1}
    assert plan.admitted == ()


def test_request_that_is_alone_without_a_block_gives_up_its_own() -> None:
    plan = compose([decode("only", 8)], free_blocks=0)
    assert (plan.preempted, plan.grants) == (("only",), {})


works = st.one_of(
    st.builds(decode, st.just("?"), st.integers(1, 40)),
    st.builds(prefill, st.just("?"), st.integers(0, 20), st.integers(1, 40)),
    st.builds(pulling, st.just("?")),
)


@given(
    st.lists(works, max_size=8),
    st.lists(st.builds(queued, st.just("?"), st.integers(1, 40), st.booleans()), max_size=6),
    st.integers(0, 20),
    st.integers(1, 40),
)
def test_no_step_exceeds_a_limit(
    running: list[SchedulableRequest], waiting: list[SchedulableRequest], free_blocks: int, max_step_tokens: int
) -> None:
    running = [replace(w, request_id=f"r{position}") for position, w in enumerate(running)]
    waiting = [replace(w, request_id=f"w{position}") for position, w in enumerate(waiting)]
    limits = Limits(max_step_tokens, 8, 4)
    step = compose_stock([*running, *waiting], free_blocks, MODEL, limits)
    known = {w.request_id: w for w in running + waiting}
    runnable = [w for w in running if not w.pulls_kv]
    kept = [w for w in runnable if w.request_id not in step.preempted]

    assert sum(step.grants.values()) == step.shape.tokens <= max_step_tokens
    assert all(1 <= tokens <= known[name].pending_tokens for name, tokens in step.grants.items())
    assert not step.grants.keys() & set(step.preempted)
    freed = sum(known[name].held_blocks for name in step.preempted)
    taken = sum(blocks_for(known[name].pending_tokens, 4) for name in step.admitted)
    for w in kept:
        needed = blocks_for(w.computed_tokens + step.grants.get(w.request_id, 0), 4)
        taken += max(0, needed - w.held_blocks)
    assert taken <= free_blocks + freed
    assert list(step.admitted) == [w.request_id for w in waiting[: len(step.admitted)]]
    places = limits.max_running_requests - (len(running) - len(step.preempted))
    assert not step.admitted or len(step.admitted) <= places
    assert list(step.preempted) == [w.request_id for w in reversed(runnable[len(kept) :])]
    assert not runnable or step.grants or step.preempted
    assert set(step.held) == {w.request_id for w in kept} - step.grants.keys()
