"""The schedulers of others, step by step: who is in a step, in which order, and for how many tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepShape
from simulator.engine import Composer, Engine
from simulator.machine import Machine, machine
from simulator.policies.base import fewest_requests, least_loaded
from simulator.policies.batch import Batch
from simulator.policies.fcfs import GRID, Fcfs, fastest_drafts, fixed, within
from simulator.policies.qoserve import BLEND, SlackChunks
from simulator.policies.slos_serve import Batches
from simulator.policies.tiers_plan import ALONE_S, EXTRA_TIER_S, MARGIN_S, TierBudget
from simulator.request import SimRequest
from tests.unit.simulator.engines import (
    BLOCK_TOKENS,
    START_S,
    clock,
    engine_of,
    exact_machine,
    request_of,
    steps,
)

TOKEN_S, OVERHEAD_S = 1e-4, 0.01


def steady_machine(kv_blocks: int = 10_000, max_draft_tokens: int = 0, per_draft_step_s: float = 0.0) -> Machine:
    """A worker whose steps take 10 ms and 0.1 ms for each token, whatever else is in them."""
    coefficients = PerformanceCoefficients(
        OVERHEAD_S, TOKEN_S, 0.0, 0.0, "placeholder", per_draft_step_s=per_draft_step_s
    )
    acceptance = 0.7 if max_draft_tokens else 0.0
    return replace(
        exact_machine(kv_blocks, acceptance, max_draft_tokens), truth=PerformanceModel(coefficients), noise=0.0
    )


def holding(*requests: SimRequest, hardware: Machine | None = None) -> Engine:
    """An engine that holds these requests and computes nothing."""
    engine, _ = engine_of(steps(), clock(), hardware or steady_machine())
    for request in requests:
        engine.submit(request)
    return engine


def decode(
    name: str, context: int = 100, left: int = 50, due_in_s: float = 0.05, tpot_s: float = 0.05, missed: bool = False
) -> SimRequest:
    """A request that decodes, with its next token due soon."""
    request = request_of(name, context, left + 1, tpots_s=(tpot_s,))
    request.take(1, START_S)
    request.due_s, request.missed = START_S + due_in_s, missed
    return request


def decoding(engine: Engine, *names: str) -> Engine:
    """Make these requests decodes that are running there."""
    for name in names:
        work = engine.requests[name].work
        work.running = work.decoding = True
        work.computed_tokens, work.pending_tokens = engine.requests[name].context_tokens - 1, 1
        work.held_blocks = -(-work.computed_tokens // BLOCK_TOKENS) + 1
        engine.free_blocks -= work.held_blocks
    return engine


def compose(composer: Composer, engine: Engine) -> Batch:
    batch = composer.compose(engine, START_S)
    assert isinstance(batch, Batch)
    return batch


class TestFcfs:
    def test_decodes_come_first_and_prompts_share_what_they_leave_of_the_budget(self) -> None:
        engine = decoding(holding(decode("d"), request_of("a", 60, 5), request_of("b", 60, 5)), "d")
        batch = compose(Fcfs(fixed(101)), engine)
        assert batch.grants == {"d": 1, "a": 60, "b": 40}
        assert batch.admitted == ["a", "b"]
        assert batch.shape == StepShape(2, 100, 60 * 30 + 40 * 20, 1, 1, 100, 0)

    def test_a_running_prompt_goes_on_before_others_are_let_in(self) -> None:
        engine = holding(request_of("a", 60, 5), request_of("b", 60, 5))
        work = engine.requests["b"].work
        work.running, work.computed_tokens, work.pending_tokens = True, 20, 40
        batch = compose(Fcfs(fixed(50)), engine)
        assert batch.grants == {"b": 40, "a": 10}
        assert batch.shape.prefill_attention_pairs == 40 * (20 + 20) + 10 * 5

    def test_a_prompt_without_memory_is_not_overtaken(self) -> None:
        engine = holding(request_of("large", 160, 5), request_of("small", 16, 1), hardware=steady_machine(kv_blocks=10))
        assert not compose(Fcfs(fixed(1000)), engine).grants
        engine = holding(request_of("fits", 155, 5), request_of("small", 16, 1), hardware=steady_machine(kv_blocks=10))
        assert compose(Fcfs(fixed(1000)), engine).grants == {"fits": 155}

    def test_no_more_are_let_in_than_may_run(self) -> None:
        hardware = steady_machine()
        few = replace(hardware, limits=replace(hardware.limits, max_running_requests=2))
        engine = decoding(holding(decode("d"), request_of("a", 5, 5), request_of("b", 5, 5), hardware=few), "d")
        assert compose(Fcfs(fixed(1000)), engine).admitted == ["a"]

    def test_with_prompts_alone_decodes_wait_while_a_whole_prompt_can_be_computed(self) -> None:
        engine = decoding(holding(decode("d"), request_of("a", 60, 5), request_of("b", 60, 5)), "d")
        composer = Fcfs(fixed(100), prompts_alone=True)
        assert compose(composer, engine).grants == {"a": 60}, "the second does not fit whole"
        assert compose(Fcfs(fixed(120), prompts_alone=True), engine).grants == {"a": 60, "b": 60}
        only = decoding(holding(decode("d")), "d")
        assert compose(composer, only).grants == {"d": 1}
        long = holding(request_of("a", 300, 5))
        assert compose(composer, long).grants == {"a": 100}, "longer than any step, in chunks"

    def test_what_pulls_its_kv_cache_is_let_in_and_computes_nothing(self) -> None:
        engine = holding()
        request = decode("d")
        engine.submit(request, pulls=True)
        batch = compose(Fcfs(fixed(100)), engine)
        assert batch.admitted == ["d"]
        assert not batch.grants

    def test_drafts_are_verified_by_all_decodes_alike(self) -> None:
        engine = decoding(holding(decode("d", context=40), decode("e", context=60)), "d", "e")
        batch = compose(Fcfs(fixed(100), drafts=lambda engine, decodes, context: decodes + context // 50), engine)
        assert batch.grants == {"d": 5, "e": 5}
        assert batch.shape == StepShape(0, 0, 0.0, 2, 10, 100, 4)


class TestWithin:
    def test_a_chunk_is_as_large_as_keeps_the_step_within_the_tpot(self) -> None:
        engine = decoding(holding(decode("d"), request_of("a", 5000, 5)), "d")
        model = engine.machine.truth
        batch = compose(Fcfs(within(model, 0.05, 4096)), engine)
        chunk = batch.grants["a"]
        assert chunk % GRID == 0
        assert model.step_s(batch.shape) <= 0.05 < model.step_s(replace(batch.shape, prefill_tokens=chunk + GRID))

    def test_attention_counts_for_the_length_of_a_chunk(self) -> None:
        quadratic = replace(
            steady_machine(),
            truth=PerformanceModel(PerformanceCoefficients(OVERHEAD_S, TOKEN_S, 0.0, 1e-6, "placeholder")),
        )
        engine = decoding(holding(decode("d"), request_of("a", 5000, 5), hardware=quadratic), "d")
        batch = compose(Fcfs(within(quadratic.truth, 0.05, 4096)), engine)
        assert 0 < batch.grants["a"] < 256
        assert quadratic.truth.step_s(batch.shape) <= 0.05

    def test_without_decodes_or_with_late_ones_only_the_limit_or_nothing_is_left(self) -> None:
        alone = holding(request_of("a", 5000, 5))
        assert compose(Fcfs(within(alone.machine.truth, 0.05, 1000)), alone).grants == {"a": 1000}
        engine = decoding(holding(decode("d"), request_of("a", 5000, 5)), "d")
        assert compose(Fcfs(within(engine.machine.truth, 0.005, 1000)), engine).grants == {"d": 1}
        assert compose(Fcfs(within(engine.machine.truth, 5.0, 1000)), engine).grants == {"d": 1, "a": 999}


def test_the_fastest_drafts_bring_most_tokens_a_second() -> None:
    """With acceptance 0.7 a draft of n brings (1 - 0.7^(n+1)) / 0.3 tokens; each costs one decode 2 ms."""
    engine = holding(hardware=steady_machine(max_draft_tokens=6, per_draft_step_s=0.0019))
    rates = [(1 - 0.7 ** (n + 1)) / 0.3 / (OVERHEAD_S + (1 + n) * TOKEN_S + 0.0019 * n) for n in range(7)]
    best = max(range(7), key=rates.__getitem__)
    assert 0 < best < 6
    assert fastest_drafts(engine, 1, 100) == best
    assert fastest_drafts(engine, 2000, 100) == 0, "a large step is all cost"


class TestPlacement:
    def test_the_least_loaded_has_least_to_compute_what_is_cached_left_out(self) -> None:
        busy, idle = holding(request_of("a", 100, 5)), holding(request_of("b", 20, 5))
        request = request_of("r", 200, 5, prefix=(1, 2), prefix_block_tokens=50)
        assert least_loaded([busy, idle], request) is idle
        busy.prefixes.keep(request.offered, 10_000)
        assert least_loaded([busy, idle], request) is busy, "80 tokens more to do, but 100 fewer of its own"

    def test_decodes_go_where_there_are_fewest(self) -> None:
        many, few = holding(request_of("a", 1, 5), request_of("b", 1, 5)), holding(request_of("c", 500, 5))
        assert fewest_requests([many, few]) is few


class TestQoServe:
    def test_prompts_take_the_slack_of_the_decode_due_first(self) -> None:
        engine = decoding(
            holding(decode("d", due_in_s=0.08), decode("e", due_in_s=0.04), request_of("a", 5000, 5)), "d", "e"
        )
        batch = compose(SlackChunks(engine.machine.truth), engine)
        assert batch.decodes == 2
        assert 0.04 - GRID * TOKEN_S < engine.machine.truth.step_s(batch.shape) <= 0.04
        spared = compose(SlackChunks(engine.machine.truth, margin=0.5), engine)
        assert spared.grants["a"] < batch.grants["a"]
        assert engine.machine.truth.step_s(spared.shape) <= 0.02

    def test_a_decode_that_has_missed_bounds_nothing(self) -> None:
        late = decode("d", due_in_s=-1.0, missed=True)
        engine = decoding(holding(late, request_of("a", 5000, 5)), "d")
        assert compose(SlackChunks(engine.machine.truth), engine).grants == {"d": 1, "a": 2048}

    def test_prompts_are_ordered_between_earliest_deadline_and_shortest(self) -> None:
        model = steady_machine().truth
        short, long = request_of("short", 1000, 5, ttft_s=9.2), request_of("long", 2500, 5, ttft_s=9.0)
        took = {r.request_id: model.prefill_s(r.context_tokens, 4096) for r in (short, long)}
        assert 9.0 + BLEND * took["long"] > 9.2 + BLEND * took["short"]
        assert list(compose(SlackChunks(model), holding(long, short)).grants) == ["short", "long"]
        early = request_of("long", 2500, 5, ttft_s=8.8)
        assert list(compose(SlackChunks(model), holding(early, short)).grants) == ["long"]

    def test_whoever_cannot_be_in_time_any_more_comes_last(self) -> None:
        model = steady_machine().truth
        hopeless, patient = request_of("hopeless", 1000, 5, ttft_s=0.1), request_of("patient", 900, 5, ttft_s=50.0)
        assert list(compose(SlackChunks(model), holding(hopeless, patient)).grants) == ["patient", "hopeless"]
        possible = request_of("hopeless", 1000, 5, ttft_s=0.12)
        assert list(compose(SlackChunks(model), holding(possible, patient)).grants) == ["hopeless", "patient"]


class TestSlosServe:
    TPOTS_S = (0.05, 0.1)

    def batches(self, engine: Engine, margin: float = 0.0) -> Batches:
        return Batches(engine.machine, self.TPOTS_S, margin)

    def test_prompts_fill_a_batch_up_to_the_due_time_of_the_first_decode(self) -> None:
        engine = decoding(holding(decode("d", due_in_s=0.06), request_of("a", 5000, 5)), "d")
        batch = compose(self.batches(engine), engine)
        assert 0.06 - MARGIN_S - GRID * TOKEN_S < engine.machine.truth.step_s(batch.shape) <= 0.06 - MARGIN_S
        spared = compose(self.batches(engine, margin=0.1), engine)
        assert engine.machine.truth.step_s(spared.shape) <= 0.9 * 0.06 - MARGIN_S
        assert spared.grants["a"] < batch.grants["a"]

    def test_late_decodes_bound_a_batch_by_the_tightest_tpot(self) -> None:
        engine = decoding(holding(decode("d", due_in_s=-0.5), request_of("a", 5000, 5)), "d")
        batch = compose(self.batches(engine), engine)
        assert 0.05 - MARGIN_S - GRID * TOKEN_S < engine.machine.truth.step_s(batch.shape) <= 0.05 - MARGIN_S

    def test_without_decodes_a_batch_takes_a_fixed_time(self) -> None:
        engine = holding(request_of("a", 10_000, 5))
        batch = compose(self.batches(engine), engine)
        assert ALONE_S - GRID * TOKEN_S < engine.machine.truth.step_s(batch.shape) <= ALONE_S

    def test_decodes_that_are_far_ahead_sit_out_beside_prompts(self) -> None:
        ahead = decode("ahead", due_in_s=0.5)
        engine = decoding(holding(decode("d", due_in_s=0.06), ahead, request_of("a", 64, 5)), "d", "ahead")
        assert list(compose(self.batches(engine), engine).grants) == ["d", "a"]
        alone = decoding(holding(decode("d", due_in_s=0.06), decode("ahead", due_in_s=0.5)), "d", "ahead")
        assert list(compose(self.batches(alone), alone).grants) == ["d", "ahead"]

    def test_accepted_prompts_go_by_deadline_and_nobody_overtakes_to_memory(self) -> None:
        later, sooner = request_of("later", 60, 5, ttft_s=9.0), request_of("sooner", 60, 5, ttft_s=3.0)
        engine = holding(later, sooner)
        assert list(compose(self.batches(engine), engine).grants) == ["sooner", "later"]
        tight = holding(
            request_of("later", 20, 5, ttft_s=9.0),
            request_of("sooner", 150, 9, ttft_s=3.0),
            hardware=steady_machine(kv_blocks=9),
        )
        assert not compose(self.batches(tight), tight).grants

    def test_best_effort_gives_its_memory_to_what_was_accepted_the_last_come_first(self) -> None:
        old, new = decode("old", context=60), decode("new", context=60)
        engine = decoding(holding(old, new, hardware=steady_machine(kv_blocks=11)), "old", "new")
        old.work.best_effort = new.work.best_effort = True
        old.work.waiting_since_s, new.work.waiting_since_s = START_S - 2, START_S - 1
        engine.submit(request_of("a", 40, 8))
        batch = compose(self.batches(engine), engine)
        assert batch.preempted == ("new",)
        assert batch.admitted == ["a"]
        assert batch.grants == {"a": 40, "old": 1}

    def test_best_effort_prompts_fit_whole_or_wait_unless_there_is_nothing_else(self) -> None:
        prompt = request_of("p", 600, 5)
        engine = decoding(holding(decode("d", due_in_s=0.06), prompt), "d")
        prompt.work.best_effort = True
        assert compose(self.batches(engine), engine).grants == {"d": 1}
        prompt.work.pending_tokens = 300
        assert compose(self.batches(engine), engine).grants == {"d": 1, "p": 300}
        alone = holding(request_of("p", 5000, 5))
        alone.requests["p"].work.best_effort = True
        assert compose(self.batches(alone), alone).grants == {"p": 4096}

    def test_drafts_end_where_decodes_would_be_late_or_the_answer_ends(self) -> None:
        hardware = steady_machine(max_draft_tokens=10, per_draft_step_s=0.002)
        engine = decoding(
            holding(decode("d", due_in_s=0.2), decode("end", due_in_s=0.2, left=1), hardware=hardware), "d", "end"
        )
        batch = compose(self.batches(engine), engine)
        assert batch.grants["end"] == 1, "one token is left"
        assert hardware.truth.step_s(batch.shape) <= 0.2
        hurried = decoding(holding(decode("d", due_in_s=0.0125), hardware=hardware), "d")
        assert compose(self.batches(hurried), hurried).grants == {"d": 1}


def test_a_batch_never_lets_in_what_will_not_fit_when_it_has_grown() -> None:
    engine = holding(request_of("a", 100, 61), hardware=steady_machine(kv_blocks=10))
    batch = Batch.of(engine)
    assert not batch.admit(engine.requests["a"].work), "161 tokens take 11 blocks"
    engine.requests["a"].export = True
    assert batch.admit(engine.requests["a"].work), "it leaves with its first token"
    assert batch.free_blocks == 3


def test_tiers_of_the_papers_planner_leave_a_margin_and_one_more_is_looser() -> None:
    budget = TierBudget.of(machine("qwen2.5-7b-a100"), (0.05, 0.1), 1000)
    assert budget.tpots_s == pytest.approx((0.05 - MARGIN_S, 0.1 - MARGIN_S, 0.1 - MARGIN_S + EXTRA_TIER_S))
    assert budget.context_tokens == 1000
