"""What holds for every step, whatever it is composed from."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.slo.composer import ComposerPolicy, Composition, Limits, SchedulableRequest, compose
from services.slo.performance import PerformanceCoefficients, PerformanceModel
from tests.unit.services.slo.composer.works import EPSILON_S, blocks_for, limits, models, policies, work_lists

MANY = settings(max_examples=300)
problems = st.tuples(work_lists(), st.integers(0, 40), models(), limits, policies)

Problem = tuple[list[SchedulableRequest], int, PerformanceModel, Limits, ComposerPolicy]


def is_promised(work: SchedulableRequest) -> bool:
    if work.best_effort or math.isnan(work.due_s):
        return False
    return work.due_s < math.inf or work.tpot_s < math.inf


def composed(problem: Problem, now_s: float = 0.0) -> Composition:
    works, free_blocks, model, limits, policy = problem
    return compose(works, free_blocks, model, limits, now_s, policy)


def copy(work: SchedulableRequest, **changes: object) -> SchedulableRequest:
    return replace(work, **changes)  # type: ignore[arg-type]


@MANY
@given(problems)
def test_no_limit_is_exceeded(problem: Problem) -> None:
    works, free_blocks, _, limits, _ = problem
    answer = composed(problem)
    known = {w.request_id: w for w in works}
    kept = [w for w in works if w.running and w.request_id not in answer.preempted]

    assert sum(answer.grants.values()) == answer.shape.tokens <= limits.max_step_tokens
    for name, tokens in answer.grants.items():
        w = known[name]
        assert 1 <= tokens <= w.pending_tokens + w.draft_tokens
        assert not w.pulls_kv
        assert w.running or name in answer.admitted
    assert set(answer.grants).isdisjoint(answer.preempted)
    assert all(known[name].running and not known[name].pinned for name in answer.preempted)
    assert not any(known[name].pulls_kv for name in answer.preempted)
    assert len(set(answer.preempted)) == len(answer.preempted)
    assert all(not known[name].running for name in answer.admitted)
    assert all(name in answer.grants or known[name].pulls_kv for name in answer.admitted)
    if answer.admitted:
        assert len(kept) + len(answer.admitted) <= limits.max_running_requests
    freed = sum(known[name].held_blocks for name in answer.preempted)
    taken = sum(blocks_for(known[name].pending_tokens + known[name].computed_tokens) for name in answer.admitted)
    for name, tokens in answer.grants.items():
        if known[name].running:
            taken += max(0, blocks_for(known[name].computed_tokens + tokens) - known[name].held_blocks)
    assert taken <= free_blocks + freed or not taken
    runnable = {w.request_id for w in kept if not w.pulls_kv}
    assert set(answer.held) == runnable - set(answer.grants)


@MANY
@given(problems)
def test_a_step_keeps_its_bound_unless_it_is_one_of_single_tokens(problem: Problem) -> None:
    answer = composed(problem)
    if answer.predicted_s > answer.limit_s + EPSILON_S:
        assert all(tokens == 1 for tokens in answer.grants.values())
        assert not answer.admitted


@MANY
@given(problems)
def test_every_stream_that_can_be_in_time_is(problem: Problem) -> None:
    """A promised stream in the step gets its token in time, if it could have had it in time with the others alone."""
    works, _, _, _, policy = problem
    answer = composed(problem)
    known = {w.request_id: w for w in works}
    streams = {n: t for n, t in answer.grants.items() if is_promised(known[n]) and known[n].pending_tokens == 1}
    alone = composed((*_only(problem, streams), problem[2], problem[3], problem[4]))
    if set(alone.grants) != set(streams) or any(known[n].draft_tokens or not known[n].running for n in streams):
        return
    for name in streams:
        if alone.predicted_s + policy.reserve_s <= known[name].due_s - EPSILON_S and _margins_grow(problem[2]):
            assert answer.predicted_s + policy.reserve_s <= known[name].due_s + EPSILON_S


def _only(problem: Problem, names: dict[str, int]) -> tuple[list[SchedulableRequest], int]:
    return [w for w in problem[0] if w.request_id in names], problem[1] + 1000


def _margins_grow(model: PerformanceModel) -> bool:
    decode, mixed, prefill = model.margins
    return decode <= mixed and prefill <= mixed


@MANY
@given(problems)
def test_it_works_whenever_it_can(problem: Problem) -> None:
    """No idle step while something could run, unless its memory goes to a promise that is pulled."""
    works, free_blocks, _, limits, _ = problem
    answer = composed(problem)
    if answer.grants or answer.preempted:
        return
    places = limits.max_running_requests - sum(w.running for w in works)
    for w in works:
        if w.pulls_kv:
            continue
        reserved = sum(_lacking(other, other.pending_tokens) for other in works if _chunked(other))
        if w.running:
            assert _lacking(w, 1) > free_blocks - (0 if _chunked(w) else reserved)
        else:
            admitted = sum(_lacking(o, o.pending_tokens) for o in works if o.request_id in answer.admitted)
            lacks_place = places - len(answer.admitted) < 1
            assert lacks_place or _lacking(w, w.pending_tokens) > free_blocks - reserved - admitted


def _chunked(work: SchedulableRequest) -> bool:
    return work.running and not work.pulls_kv and work.pending_tokens != 1


def _lacking(work: SchedulableRequest, tokens: int) -> int:
    return max(0, blocks_for(work.computed_tokens + tokens) - work.held_blocks)


@MANY
@given(problems)
def test_best_effort_takes_nothing_from_promised_work(problem: Problem) -> None:
    """Without any best effort, promised work gets neither more tokens nor more memory than with it.

    Drafts apart: nobody is preempted for them; and prompts that are in time all the same beside streams of best effort,
    or beside best effort that has a contract: see the next test. A stream that has all the time there is keeps the step
    from being one of last resort, or of another kind with best effort than without.
    """
    works, free_blocks, model, limits, policy = problem
    limits = replace(limits, max_step_tokens=limits.max_step_tokens + 1)
    stream = SchedulableRequest("stream", 1, 1, True, True, 1, 1e9)
    works = [stream, *(copy(w, pinned=False, pulls_kv=False, draft_tokens=0) for w in works)]
    works = [w if is_promised(w) else copy(w, due_s=math.inf) for w in works]
    promised = [w for w in works if is_promised(w)]
    names = {w.request_id for w in promised}
    if any(w.running and w.decoding and w.request_id not in names for w in works):
        promised = [w for w in promised if w.running and w.pending_tokens == 1]
        works = [w for w in works if w in promised or w.request_id not in names]
    answer = compose(works, free_blocks, model, limits, 0.0, policy)
    free_blocks += sum(w.held_blocks for w in works if w.running and w.request_id not in names)
    alone = compose(promised, free_blocks, model, limits, 0.0, policy)
    assert {name: tokens for name, tokens in answer.grants.items() if name in names} == dict(alone.grants)
    assert [name for name in answer.admitted if name in names] == list(alone.admitted)
    assert [name for name in answer.preempted if name in names] == list(alone.preempted)


@MANY
@given(problems)
def test_best_effort_with_a_contract_takes_nothing_from_promised_streams(problem: Problem) -> None:
    """They get what they would get without it, unless streams skip a step for prompts that would be late."""
    works, free_blocks, model, limits, policy = problem
    policy = replace(policy, streams_may_skip=False)
    limits = replace(limits, max_step_tokens=limits.max_step_tokens + 1)
    stream = SchedulableRequest("stream", 1, 1, True, True, 1, 1e9)
    works = [stream, *(copy(w, pinned=False, pulls_kv=False, draft_tokens=0) for w in works)]
    promised = [w for w in works if is_promised(w)]
    names = {w.request_id for w in promised}
    answer = compose(works, free_blocks, model, limits, 0.0, policy)
    free_blocks += sum(w.held_blocks for w in works if w.running and w.request_id not in names)
    alone = compose(promised, free_blocks, model, limits, 0.0, policy)
    streams = {w.request_id for w in promised if w.running and w.pending_tokens == 1}
    assert {n: t for n, t in answer.grants.items() if n in streams} == {
        n: t for n, t in alone.grants.items() if n in streams
    }


@MANY
@given(work_lists(), st.integers(0, 40), limits, policies, st.floats(-1e6, 1e6))
def test_only_durations_matter_whatever_the_clock_says(
    works: list[SchedulableRequest], free_blocks: int, limits: Limits, policy: ComposerPolicy, shift_s: float
) -> None:
    """A clock that jumps, also backwards, changes nothing once due times are on it; nothing is remembered."""
    shift_s = float(round(shift_s * 1024)) / 1024
    policy = replace(policy, reserve_s=0.0, ageing=0.0, buffer_tpots=0.5)
    works = [_rounded(w) for w in works]
    model = PerformanceModel(_dyadic())
    moved = [
        copy(w, due_s=w.due_s + shift_s, wanted_s=w.wanted_s + shift_s, waiting_since_s=w.waiting_since_s)
        for w in works
    ]
    before = compose(works, free_blocks, model, limits, 0.0, policy)
    compose(works, free_blocks, model, limits, 1e9, policy)
    after = compose(moved, free_blocks, model, limits, shift_s, policy)
    assert dict(before.grants) == dict(after.grants)
    assert (before.preempted, before.admitted, before.held) == (after.preempted, after.admitted, after.held)


def _rounded(work: SchedulableRequest) -> SchedulableRequest:
    """To figures that a float adds up without error."""
    return copy(work, due_s=_round(work.due_s), wanted_s=_round(work.wanted_s), tpot_s=_round(work.tpot_s))


def _round(value_s: float) -> float:
    return float(round(value_s * 1024)) / 1024 if math.isfinite(value_s) else value_s


def _dyadic() -> PerformanceCoefficients:
    return PerformanceCoefficients(1 / 128, 1 / 1024, 0.0, 0.0, "measured")


@MANY
@given(problems)
def test_the_same_question_has_the_same_answer_and_is_left_alone(problem: Problem) -> None:
    before = [copy(w) for w in problem[0]]
    assert composed(problem) == composed(problem)
    for ours, theirs in zip(problem[0], before, strict=True):
        assert repr(ours) == repr(theirs)


@MANY
@given(problems, st.floats(-5, -1e-3))
def test_a_late_stream_takes_no_room_from_a_promised_prefill(problem: Problem, due_s: float) -> None:
    """One that is late already might as well be due at once: it is served, and bounds nothing."""
    _, _, model, limits, policy = problem
    policy = replace(policy, step_cap_s=math.inf, max_step_multiple=1e300)
    late = SchedulableRequest("late", 8, 1, True, True, 3, due_s, math.inf)
    prompt = SchedulableRequest("prompt", 0, 8, False, False, 0, 1e6)
    limits = replace(limits, max_step_tokens=max(16, limits.max_step_tokens), max_running_requests=4)
    answer = compose([late, prompt], 50, model, limits, 0.0, policy)
    assert answer.grants == {"late": 1, "prompt": 8}
