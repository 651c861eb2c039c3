"""The first plan of a round: who goes first, where each goes, and which promises bind."""

from __future__ import annotations

import numpy as np
import pytest

from services.slo.planner import PromisedPrefill, StepBound, Tiers, WorkerProfile
from services.slo.planner.kernels.greedy import contested_prefillers, protect
from services.slo.planner.kernels.layout import JOB_LIMIT_S
from services.slo.planner.packing import pack
from tests.unit.services.slo.planner.simple import (
    ask,
    colocated,
    decide,
    decoder,
    guaranteed,
    placed_greedily,
    prefiller,
    problem_of,
)


class TestFirstPlan:
    """One of two requests of the same value finds a place, and it is not the one that is named first."""

    def test_who_has_most_of_a_prompt_cached_goes_first(self) -> None:
        asked = [ask("a", 400, deadline_s=0.47), ask("b", 400, deadline_s=0.47, cached=(("p", 370),))]
        assert guaranteed([prefiller(), decoder()], *asked) == ["b"]

    def test_who_takes_a_smaller_share_of_steps_goes_first(self) -> None:
        asked = [ask("a", tier=0), ask("b", tier=1)]
        assert guaranteed([prefiller(), decoder(slots_free=1, handover_steps=0.0)], *asked) == ["b"]

    def test_who_takes_less_memory_goes_first(self) -> None:
        asked = [ask("a", kv_tokens=500), ask("b", kv_tokens=200)]
        assert guaranteed([prefiller(), decoder(slots_free=1)], *asked) == ["b"]

    def test_who_is_worth_more_goes_first(self) -> None:
        asked = [ask("a", value=1.0), ask("b", value=1.1)]
        assert guaranteed([prefiller(), decoder(slots_free=1)], *asked) == ["b"]


class TestPlacement:
    @pytest.mark.parametrize("seed", range(6))
    def test_an_idle_worker_is_taken_before_a_booked_one(self, seed: int) -> None:
        booked = prefiller("booked", promised=(PromisedPrefill(50.0, 2000),))
        assert decide([booked, prefiller("idle"), decoder()], ask(), seed=seed).prefill_worker_id == "idle"

    @pytest.mark.parametrize("seed", range(6))
    def test_a_decode_goes_where_it_takes_least_of_the_time(self, seed: int) -> None:
        """Where steps are as short already, it does not make them shorter for others."""
        tight = decoder("tight", running=(5, 0), context_tokens=(500, 0), handover_steps=0.0)
        loose = decoder("loose", running=(0, 5), context_tokens=(0, 500), handover_steps=0.0)
        workers = [prefiller(), tight, loose]
        assert decide(workers, ask(tier=0), seed=seed).decode_worker_id == "tight"

    @pytest.mark.parametrize("seed", range(6))
    def test_a_request_stays_where_that_costs_no_transfer(self, seed: int) -> None:
        workers = [colocated("a"), colocated("b")]
        decision = decide(workers, ask(), seed=seed)
        assert decision.prefill_worker_id == decision.decode_worker_id

    @pytest.mark.parametrize("tier", [-1, 0, 1])
    @pytest.mark.parametrize("seed", range(4))
    def test_a_decode_worker_computes_no_prompt_for_another_one(self, seed: int, tier: int) -> None:
        """Decode workers export no KV caches, even where one is quicker at prompts and another at streams."""
        tiers = Tiers((0.5, 1.0))
        prompts = WorkerProfile(StepBound(0.01, 5e-4, per_context_token_s=1e-4), tiers, 512, max_step_s=0.1)
        streams = WorkerProfile(StepBound(0.01, 1e-3), tiers, 512, max_step_s=0.1)
        workers = [colocated("prompts", profile=prompts), colocated("streams", profile=streams)]
        decision = decide(workers, ask(prompt_tokens=200, tier=tier), seed=seed)
        assert decision.guaranteed
        assert decision.prefill_worker_id == decision.decode_worker_id
        if tier >= 0:
            quick = prefiller(profile=prompts)
            handed_over = decide([quick, workers[1]], ask(prompt_tokens=200, tier=tier), seed=seed)
            assert (handed_over.prefill_worker_id, handed_over.decode_worker_id) == ("p", "streams")

    def test_most_wanted_prefillers_are_contested_first(self) -> None:
        asked = [ask(f"c{index}", 300, deadline_s=0.35, cached=(("p1", 1),)) for index in range(5)]
        state = placed_greedily(problem_of([prefiller("p0"), prefiller("p1"), decoder()], *asked))
        assert sorted(contested_prefillers(state)) == [0, 1]
        idle = placed_greedily(problem_of([prefiller(), decoder()], ask("late", deadline_s=0.01)))
        assert list(contested_prefillers(idle)) == [], "nothing is to be gained where nobody holds anything"


def test_a_promise_that_cannot_be_kept_loses_its_limit_and_no_other_does() -> None:
    queue = (
        PromisedPrefill(0.05, 100),
        PromisedPrefill(0.17, 50),
        PromisedPrefill(0.18, 100),
        PromisedPrefill(0.4, 50),
    )
    state = pack(problem_of([prefiller(promised=queue), decoder()], ask()), 1e9).state
    protect(state)
    assert state.jobs[:4, JOB_LIMIT_S].tolist() == [np.inf, 0.17, np.inf, 0.4]
