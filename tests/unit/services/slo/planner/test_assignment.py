"""What a placed request takes of its two workers, and what it may not take from those promised before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.slo.planner import Binding, PromisedPrefill, StepBound, Verdict, WorkerProfile
from services.slo.planner.kernels.assignment import attach, detach, prefill_fits, set_destination, work_of
from services.slo.planner.kernels.layout import JOB_DUE_S, SETTING_PROMISED_JOBS
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.packing import pack
from tests.unit.services.slo.planner.simple import (
    PROFILE,
    TIERS,
    ask,
    colocated,
    decide,
    decoder,
    guaranteed,
    plan,
    prefiller,
    problem_of,
)

TWO = [ask("a"), ask("b")]


class TestHandover:
    def test_the_steps_of_a_handover_count_against_the_second_token(self) -> None:
        # Alone on its decode worker, the request waits for steps of 12 ms: 10 ms, its token, and one for rounding.
        assert decide([prefiller(), decoder(handover_steps=8.0)], ask()).guaranteed
        late = decide([prefiller(), decoder(handover_steps=9.0)], ask())
        assert (late.verdict, late.binding) == (Verdict.IMPOSSIBLE, Binding.DECODE_RATE)

    def test_a_request_without_a_rate_may_take_its_time(self) -> None:
        assert decide([prefiller(), decoder(handover_steps=1e6)], ask(tier=-1)).guaranteed

    def test_where_prompts_are_computed_too_the_next_token_waits_for_a_whole_step(self) -> None:
        # Its own prompt takes until 0.23 s and is due at 0.26 s: it has no time for another one.
        helper = decoder(prefills=True, promised=(PromisedPrefill(0.26, 200),))
        asked = ask(deadline_s=0.25)
        for steps, fits in ((0.9, True), (1.1, False)):
            assert decide([prefiller(), replace(helper, handover_steps=steps)], asked).guaranteed == fits


class TestMemory:
    def test_the_prompt_needs_memory_where_it_is_computed(self) -> None:
        assert decide([prefiller(kv_tokens_free=50), decoder()], ask()).guaranteed
        assert not decide([prefiller(kv_tokens_free=49), decoder()], ask()).guaranteed

    def test_the_whole_context_needs_memory_where_it_decodes(self) -> None:
        assert decide([prefiller(), decoder(kv_tokens_free=150)], ask()).guaranteed
        refused = decide([prefiller(), decoder(kv_tokens_free=149)], ask())
        assert (refused.verdict, refused.binding) == (Verdict.HOLD, Binding.KV_MEMORY)
        assert decide([colocated(kv_tokens_free=150)], ask()).guaranteed
        assert not decide([colocated(kv_tokens_free=149)], ask()).guaranteed

    @pytest.mark.parametrize("free", [99, 100])
    def test_a_placed_prompt_takes_memory_from_the_next(self, free: int) -> None:
        assert len(guaranteed([prefiller(kv_tokens_free=free), decoder()], *TWO)) == free - 98

    @pytest.mark.parametrize("free", [299, 300])
    def test_a_placed_context_takes_memory_from_the_next(self, free: int) -> None:
        assert len(guaranteed([prefiller(), decoder(kv_tokens_free=free)], *TWO)) == free - 298
        assert len(guaranteed([colocated(kv_tokens_free=free)], *TWO)) == free - 298


class TestSlots:
    @pytest.mark.parametrize("slots", [0, 1, 2])
    def test_every_decode_takes_a_slot(self, slots: int) -> None:
        assert len(guaranteed([prefiller(), decoder(slots_free=slots)], *TWO)) == slots
        assert len(guaranteed([colocated(slots_free=slots)], *TWO)) == slots

    def test_a_request_without_a_rate_takes_none(self) -> None:
        for workers in ([prefiller(), decoder(slots_free=1)], [colocated(slots_free=1)]):
            assert guaranteed(workers, ask("a", tier=-1), ask("b"), ask("c", tier=-1)) == ["a", "b", "c"]


class TestRate:
    def test_decodes_add_up_to_what_a_step_holds(self) -> None:
        """A step of 50 ms has 10 ms of its own, a token for rounding, and 39 decodes of a tier of 50 ms."""
        asked = [ask(f"c{index}", 10, tier=0) for index in range(45)]
        assert len(guaranteed([prefiller(), decoder(handover_steps=0.0)], *asked)) == 39

    def test_contexts_add_up_too(self) -> None:
        profile = WorkerProfile(StepBound(0.01, 1e-3, per_context_token_s=1e-4), TIERS, 512, 0.1)
        workers = [prefiller(profile=profile), decoder(profile=profile, handover_steps=0.0)]
        # Of 39 ms each takes 1 ms for its token and 11 ms for 110 tokens of context.
        assert len(guaranteed(workers, *[ask(f"c{index}", 10, tier=0) for index in range(6)])) == 3

    def test_a_decode_that_comes_leaves_promised_prompts_their_time(self) -> None:
        """Its token takes 1 ms of each of the steps in which a prompt of 800 tokens is computed."""
        for due_s, fits in ((0.92, True), (0.91, False)):
            helper = decoder(prefills=True, handover_steps=0.0, promised=(PromisedPrefill(due_s, 800),))
            busy = prefiller(promised=(PromisedPrefill(0.2, 100),))
            assert decide([busy, helper], ask(deadline_s=0.3)).guaranteed == fits


class TestPrompts:
    def test_a_prompt_that_is_cached_still_computes_a_token(self) -> None:
        cached = decide([prefiller(), decoder()], ask(prompt_tokens=400, cached=(("p", 400),)))
        assert cached.expected_first_token_s == pytest.approx(0.011)

    def test_a_prompt_is_computed_but_for_what_is_cached(self) -> None:
        cached = decide([prefiller(), decoder()], ask(prompt_tokens=400, cached=(("p", 350),)))
        assert cached.expected_first_token_s == pytest.approx(0.06)

    def test_each_token_attends_to_those_before_it(self) -> None:
        row = prefiller(profile=WorkerProfile(StepBound(0.01, 1e-3, 5e-4, 0.0, 1e-6), TIERS, 512)).row
        pairs = sum(range(300, 400)) + 100 / 2
        assert work_of(row, 400.0, 300.0) == pytest.approx(0.1 + 5e-4 + 1e-6 * pairs)

    def test_earlier_prompts_are_not_made_late_by_later_ones(self) -> None:
        """The one placed first is due at 0.12 s; one due before it needs 60 ms more than there are."""
        busy = prefiller(promised=(PromisedPrefill(0.12, 100),))
        assert not decide([busy, decoder()], ask(deadline_s=0.08)).guaranteed
        assert decide([busy, decoder()], ask(deadline_s=0.2)).guaranteed

    def test_what_stays_to_decode_must_be_kept_up_with(self) -> None:
        full = colocated(running=(38, 0), context_tokens=(3800, 0))
        assert len(guaranteed([full], *[ask(f"c{index}", 1, tier=0) for index in range(3)])) == 1


PLACES = [(0, 0), (1, 1), (0, 1), (1, 0)]


def _fits_everywhere(state: PlanState, candidate: int) -> list[tuple[int, list[float]]]:
    found = []
    for worker in range(2):
        job = set_destination(state, candidate, worker, worker)
        found.append((prefill_fits(state, job, worker), state.schedule.tolist()))
    return found


@settings(max_examples=60, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=20))
def test_placing_and_taking_back_leaves_nothing_behind(moves: list[tuple[int, int]]) -> None:
    """Whatever was placed before, a worker answers as if only those were placed that are."""
    promised = (PromisedPrefill(0.5, 100, decode_tier=1, kv_tokens=150),)
    workers = [colocated(name, promised=promised) for name in ("w0", "w1")]
    candidates = [ask(f"c{index}", 20 + 30 * index, deadline_s=0.3 + 0.2 * index) for index in range(6)]

    def packed() -> PlanState:
        return pack(problem_of(workers, *candidates), 1e9).state

    state = packed()
    placed: dict[int, tuple[int, int]] = {}
    for candidate, place in moves:
        _fits_everywhere(state, 5)
        if candidate in placed:
            detach(state, candidate)
            del placed[candidate]
        else:
            placed[candidate] = PLACES[place]
            attach(state, candidate, *placed[candidate])
    afresh = packed()
    for candidate, (here, there) in placed.items():
        attach(afresh, candidate, here, there)
    assert _fits_everywhere(state, 5) == _fits_everywhere(afresh, 5)
    assert np.array_equal(state.workers, afresh.workers)
    assert np.array_equal(state.placed, afresh.placed)
    for worker in range(2):
        queue = state.queue[worker, : state.queued[worker]]
        assert set(queue) == set(afresh.queue[worker, : afresh.queued[worker]])
        assert list(state.jobs[queue, JOB_DUE_S]) == sorted(state.jobs[queue, JOB_DUE_S])
    assert int(state.settings[SETTING_PROMISED_JOBS]) == 2


def test_a_plan_says_how_workers_with_something_new_step() -> None:
    outcome = plan([prefiller(), decoder(running=(0, 20), context_tokens=(0, 2000)), decoder("idle")], ask(tier=0))
    assert PROFILE.tiers.tpot_s[0] == 0.05
    (decision,) = outcome.decisions
    assert decision.decode_worker_id == "idle"
    assert outcome.steps["idle"].step_s == pytest.approx(0.049)
    assert outcome.steps["idle"].draft_tokens == (0, 0)
    assert set(outcome.steps) == {"p", "idle"}
