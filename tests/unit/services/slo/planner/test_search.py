"""Each part of the search alone: what it is to find, and that nothing it tries is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planner_instances import Kind, draw
from benchmarks.planner_subsets import best_value
from services.slo.planner import Problem, PromisedPrefill, Tiers, WorkerProfile
from services.slo.planner.kernels.assignment import set_destination, try_pair, work_of
from services.slo.planner.kernels.exchange import exchange
from services.slo.planner.kernels.frontier import solve_frontier
from services.slo.planner.kernels.greedy import protect
from services.slo.planner.kernels.improvement import improve_prefiller
from services.slo.planner.kernels.layout import (
    JOB_DUE_S,
    JOB_VALUE,
    JOB_WORK_S,
    PLACED_PREFILLER,
    SETTING_PROMISED_JOBS,
    SETTING_WORK_LIMIT,
)
from services.slo.planner.kernels.moore_hodgson import solve_moore_hodgson
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.kernels.pricing import shadow_prices, share_of
from services.slo.planner.packing import pack
from services.slo.planner.planning import LEAST_WORK, MOST_WORK, default_work_limit
from tests.unit.services.slo.planner.simple import (
    BOUND,
    ask,
    colocated,
    decoder,
    placed_greedily,
    prefiller,
    problem_of,
)


def packed(problem: Problem) -> PlanState:
    return pack(problem, 1e9).state


def placed_value(state: PlanState) -> float:
    first = int(state.settings[SETTING_PROMISED_JOBS])
    has_place = state.placed[:, PLACED_PREFILLER] >= 0
    return float(state.jobs[first : first + len(state.placed), JOB_VALUE][has_place].sum())


@pytest.mark.parametrize("part", [exchange, improve_prefiller])
def test_each_part_of_the_search_alone_keeps_to_what_is_feasible(part: Callable[..., float]) -> None:
    improved = 0
    for seed in range(40):
        problem = draw(Kind(pending=8, promised=2, tight_memory=seed % 2 == 0, equal_values=False), seed)
        state = placed_greedily(problem)
        ranking = np.arange(len(problem.candidates))
        greedy, before = placed_value(state), state.placed.copy()
        gained = part(state, ranking) if part is exchange else part(state, 0, ranking)
        assert gained >= 0
        assert placed_value(state) == pytest.approx(greedy + gained)
        assert placed_value(state) <= best_value(problem) + 1e-6
        if not gained:
            assert np.array_equal(state.placed, before)
        improved += gained > 0
    assert improved


@pytest.mark.parametrize("equal_values", [False, True])
def test_solving_a_worker_anew_never_loses_value_however_little_it_may_search(equal_values: bool) -> None:
    for seed in range(12):
        problem = draw(Kind(pending=16, colocated=True, tight_memory=True, equal_values=equal_values), seed)
        for extra in (0, 50, 600, 5000):
            state = placed_greedily(problem)
            state.settings[SETTING_WORK_LIMIT] = state.spent[0] + extra
            greedy = placed_value(state)
            gained = improve_prefiller(state, 0, np.arange(16))
            assert gained >= 0
            assert placed_value(state) == pytest.approx(greedy + gained)


def in_order(state: PlanState, candidates: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return every job by due time, each made for the first worker, and for the last to decode."""
    promised = int(state.settings[SETTING_PROMISED_JOBS])
    for candidate in range(candidates):
        set_destination(state, candidate, 0, len(state.workers) - 1)
    return np.argsort(state.jobs[: promised + candidates, JOB_DUE_S], kind="stable")


KINDS = [
    replace(Kind(pending=7, equal_values=False, running=20), colocated=colocated, **extra)
    for colocated in (False, True)
    for extra in ({}, {"promised": 3}, {"tight_memory": True}, {"running": 300}, {"tiers": 1, "roofline": True})
]


class TestFrontier:
    def test_it_finds_the_best_set(self) -> None:
        for kind in KINDS:
            for seed in range(6):
                problem = draw(kind, seed)
                assert self.value(problem, exact=True, beam=1024) == pytest.approx(best_value(problem)), (kind, seed)

    def test_a_narrow_beam_finds_nearly_as_much(self) -> None:
        found = best = 0.0
        for kind in KINDS:
            for seed in range(6):
                problem = draw(kind, seed)
                reached = self.value(problem, exact=False, beam=8)
                assert reached <= best_value(problem) + 1e-6
                found, best = found + reached, best + best_value(problem)
        assert found >= 0.97 * best

    def test_slots_are_counted(self) -> None:
        for slots in (0, 1, 2):
            for workers in ([colocated(slots_free=slots)], [prefiller(), decoder(slots_free=slots)]):
                problem = problem_of(workers, *[ask(f"c{index}") for index in range(3)])
                assert self.value(problem, exact=True, beam=64) == slots

    def test_a_worker_that_cannot_keep_up_has_no_set(self) -> None:
        crowd = colocated(running=(60, 0), context_tokens=(600, 0))
        assert self.solve(packed(problem_of([crowd], ask())), 1, exact=True, beam=64) == (-1, [])

    def value(self, problem: Problem, *, exact: bool, beam: int) -> float:
        state = packed(problem)
        protect(state)
        count, chosen = self.solve(state, len(problem.candidates), exact=exact, beam=beam)
        assert count >= 0
        dues = list(state.jobs[chosen, JOB_DUE_S])
        assert dues == sorted(dues, reverse=True)
        return float(state.jobs[chosen, JOB_VALUE].sum())

    def solve(self, state: PlanState, candidates: int, *, exact: bool, beam: int) -> tuple[int, list[int]]:
        promised, last = int(state.settings[SETTING_PROMISED_JOBS]), len(state.workers) - 1
        sequence = in_order(state, candidates)
        shares, scarce_s = np.zeros(sequence.size), np.zeros(sequence.size)
        value_per_s = shadow_prices(state, 0, last, last > 0, sequence, shares, scarce_s)
        chosen = np.empty(sequence.size, dtype=np.int64)
        count = solve_frontier(
            state.workers[0],
            state.step_tables[0],
            state.tpot_s,
            state.jobs,
            sequence,
            promised,
            state.workers[last],
            state.step_tables[last],
            last > 0,
            shares,
            scarce_s,
            value_per_s,
            exact,
            beam,
            1e9,
            state.spent,
            chosen,
        )
        return count, chosen[: max(0, count)].tolist()


class TestMooreHodgson:
    def test_it_is_optimal_where_it_applies(self) -> None:
        for seed in range(60):
            problem = draw(Kind(pending=8, tiers=1, running=0), seed)
            state = packed(problem)
            worker = state.workers[0]
            for job, candidate in enumerate(problem.candidates):
                state.jobs[job, JOB_WORK_S] = work_of(worker, candidate.prompt_tokens, 0.0)
            chosen = self.chosen(state, np.argsort(state.jobs[:8, JOB_DUE_S]))
            assert chosen is not None
            assert len(chosen) == best_value(problem)

    def test_promised_prefills_stay(self) -> None:
        """The longest is promised; of the others one has to go."""
        worker = prefiller(promised=(PromisedPrefill(0.6, 400),))
        state = packed(problem_of([worker, decoder()], ask("a", 80, deadline_s=0.5), ask("b", 60, deadline_s=0.55)))
        assert self.chosen(state, in_order(state, 2)) == [2]

    def test_there_is_no_set_if_even_promised_prefills_are_late(self) -> None:
        state = packed(problem_of([prefiller(promised=(PromisedPrefill(0.2, 400),)), decoder()], ask()))
        assert self.chosen(state, in_order(state, 1)) is None

    def chosen(self, state: PlanState, sequence: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int] | None:
        promised, chosen = int(state.settings[SETTING_PROMISED_JOBS]), np.empty(sequence.size, dtype=np.int64)
        table = state.step_tables[0]
        found = solve_moore_hodgson(
            state.workers[0], table, state.tpot_s, state.jobs, sequence, promised, state.spent, chosen
        )
        return None if found < 0 else chosen[:found].tolist()


class TestPrices:
    def test_a_decode_takes_its_share_of_the_longest_steps_that_serve_it(self) -> None:
        profile = WorkerProfile(BOUND, Tiers((0.05, 0.1), (0.8, 0.8), 2), 512, 0.3)
        workers = [prefiller(profile=profile), decoder(profile=profile)]
        state = packed(problem_of(workers, ask("a", tier=0), ask("b", tier=1), ask("c", tier=-1)))
        # Of 0.8 + 0.64 tokens by drafts three quarters are counted on, for the price of three tokens.
        counted = 1 + 0.75 * (0.8 + 0.64)
        shares = [share_of(state, 1, job) for job in range(3)]
        assert shares == pytest.approx([0.003 / (0.05 * counted), 0.003 / (0.1 * counted), 0.0])

    def test_scarce_memory_of_the_decode_worker_is_worth_the_prefill_workers_time(self) -> None:
        asked = [ask("a", deadline_s=1.0), ask("b", kv_tokens=450, deadline_s=2.0)]
        for free, scarce in ((600, False), (599, True)):
            state = packed(problem_of([prefiller(), decoder(kv_tokens_free=free)], *asked))
            sequence, scarce_s = in_order(state, 2), np.zeros(2)
            value_per_s = shadow_prices(state, 0, 1, True, sequence, np.zeros(2), scarce_s)
            # Of the 2 s until the last deadline, prefill has 89 of 99 ms.
            capacity_s = 2.0 * 0.089 / 0.099
            assert scarce_s == pytest.approx([capacity_s * 150 / 599, capacity_s * 450 / 599] if scarce else [0, 0])
            if not scarce:
                assert value_per_s == pytest.approx(1 / 0.05), "both are taken, for 50 ms each"

    def test_what_decodes_here_takes_from_what_comes_later(self) -> None:
        state = packed(problem_of([colocated()], ask("a", deadline_s=1.0), ask("b", deadline_s=3.0)))
        sequence, shares, scarce_s = in_order(state, 2), np.zeros(2), np.zeros(2)
        value_per_s = shadow_prices(state, 0, 0, False, sequence, shares, scarce_s)
        assert shares == pytest.approx([0.01, 0.01])
        assert scarce_s == pytest.approx([0.0, 0.0])
        assert value_per_s == pytest.approx(1 / 0.07), "that due first takes a hundredth of 2 s beside its own 50 ms"

    def test_promised_prefills_use_up_time(self) -> None:
        """Of 0.9 s of prefill work 0.4 s are promised; the first takes most of the rest, and the second is the last."""
        workers = [prefiller(promised=(PromisedPrefill(1.0, 400),)), decoder()]
        wanted = (("a", 400, 8.0), ("b", 200, 1.0), ("c", 100, 0.1))
        asked = [ask(name, tokens, value=value, deadline_s=1.0) for name, tokens, value in wanted]
        state = packed(problem_of(workers, *asked))
        value_per_s = shadow_prices(state, 0, 1, True, in_order(state, 3), np.zeros(4), np.zeros(4))
        assert value_per_s == pytest.approx(1.0 / 0.2)


class TestExchange:
    def test_several_that_are_worth_less_together_make_way_and_who_still_fits_comes_back(self) -> None:
        """The dear one needs the time of b and c; a is tried first, and need not have gone."""
        asked = [
            ask("dear", 400, deadline_s=0.55, value=5.0),
            ask("c", 180, deadline_s=0.56, value=1.5),
            ask("b", 180, deadline_s=0.56, value=1.5),
            ask("a", 20, deadline_s=0.56, value=1.0),
        ]
        state = packed(problem_of([prefiller(), decoder()], *asked))
        for candidate in (1, 2, 3):
            assert try_pair(state, candidate, 0, 1)
        assert exchange(state, np.arange(4)) == pytest.approx(2.0)
        assert (state.placed[:, PLACED_PREFILLER] >= 0).tolist() == [True, False, False, True]

    def test_nobody_makes_way_for_as_much(self) -> None:
        asked = [
            ask("new", 400, deadline_s=0.46, value=3.0),
            *[ask(f"c{i}", 190, deadline_s=0.46, value=1.5) for i in (1, 2)],
        ]
        state = packed(problem_of([prefiller(), decoder()], *asked))
        for candidate in (1, 2):
            assert try_pair(state, candidate, 0, 1)
        assert exchange(state, np.arange(3)) == 0
        assert (state.placed[:, PLACED_PREFILLER] >= 0).tolist() == [False, True, True]


def test_the_work_limit_grows_with_the_square_of_the_candidates_between_two_bounds() -> None:
    assert default_work_limit(1) == default_work_limit(64) == LEAST_WORK
    assert default_work_limit(128) == 1000 + int(0.42 * 128**2)
    assert default_work_limit(1000) == MOST_WORK
