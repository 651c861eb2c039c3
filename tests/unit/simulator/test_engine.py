"""A simulated engine, step by step: who gets which token when, what memory is taken and given back."""

from __future__ import annotations

import math
import random

import pytest

from services.slo.attainment import AttainmentMeter
from services.slo.composer.token_deadlines import TokenDeadlines
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from simulator.engine import Engine
from tests.unit.simulator.engines import (
    BLOCK_TOKENS,
    START_S,
    TICK_S,
    PlannedStep,
    Script,
    clock,
    engine_of,
    exact_machine,
    pace,
    request_of,
    shape_of,
    steps,
)


class Scored:
    """A request on an engine beside the two that judge it elsewhere: the router's meter and the engine's deadlines."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.tpots_s = tuple(TICK_S * draw.randint(2, 6) for _ in range(draw.randint(0, 2)))
        self.thinking, output = draw.randint(0, 9), draw.randint(1, 14)
        ttft_s = TICK_S * draw.randint(3, 24)
        self.request = request_of(
            name, 4, output, ttft_s=ttft_s, tpots_s=self.tpots_s, first_stage_tokens=self.thinking
        )
        best_effort = draw.random() < 0.3
        pace(self.request, best_effort=best_effort)
        targets = tuple(DecodeTarget(tpot_s, ends_with="x") for tpot_s in self.tpots_s)
        self.meter = AttainmentMeter(Contract(PrefillTarget(ttft_s=ttft_s), targets), START_S)
        self.deadlines = TokenDeadlines.begin(
            START_S, ttft_s, self.tpots_s[0] if self.tpots_s else None, 0, best_effort=best_effort
        )
        self.seen = self.ties = self.together = 0

    def follow(self, now_s: float) -> None:
        """Feed the meter what came, and compare."""
        request, meter = self.request, self.meter
        came = request.generated - self.seen
        self.together += came > 1
        while self.seen < request.generated:
            self.ties += now_s == meter.next_due_s()
            meter.note_tokens(1, now_s)
            if self.seen == self.thinking:
                meter.end_stage()
            self.seen += 1
        assert request.missed == meter.missed
        assert request.generated <= request.output_tokens
        work = request.work
        if work.decoding and not request.ended:
            assert (work.computed_tokens, work.pending_tokens) == (request.context_tokens - 1, 1)
        if request.ended:
            assert request.attained == meter.attainment().kept
            assert request.ended_s == now_s or not came
            return
        if self.seen:
            due_s = meter.next_due_s()
            assert request.due_s == (math.inf if due_s is None else due_s)
            assert request.tpot_s == (meter.current_tpot_s() or math.inf)
        if self.seen and not (work.best_effort and request.missed):
            assert (work.due_s, work.tpot_s) == (request.due_s, request.tpot_s)
        if len(self.tpots_s) < 2:
            self.deadlines.note_tokens(came, now_s)
            assert (work.due_s, work.tpot_s) == (self.deadlines.due_s, self.deadlines.tpot_s)
            assert work.wanted_s == self.deadlines.wanted_s


def test_scores_as_the_attainment_meter_does() -> None:
    """Every token of streams side by side, one and several a step, across stages, late, early and exactly in time."""
    draw = random.Random(4)
    kept: set[bool] = set()
    ties = together = late_stages = 0
    for number in range(150):
        events = clock()
        scored = [Scored(name, draw) for name in ("a", "b", "c")]

        def compose(engine: Engine, now_s: float) -> PlannedStep:
            chosen = [name for name in engine.requests if draw.random() < 0.9] or list(engine.requests)
            grants = {}
            for name in chosen:
                work = engine.requests[name].work
                grants[name] = work.pending_tokens + (draw.choice((0, 0, 0, 2, 3)) if work.decoding else 0)
            admitted = [name for name in chosen if not engine.requests[name].work.running]
            return PlannedStep(grants, shape_of(draw.randint(1, 6)), admitted=admitted)

        engine, calls = engine_of(
            Script(compose), events, exact_machine(acceptance=0.6, max_draft_tokens=3), seed=number
        )

        def follow(now_s: float, engine: Engine = engine, scored: list[Scored] = scored) -> None:
            came = [one.request.generated - one.seen for one in scored if one.seen]
            assert engine.stream_tokens == sum(came), "first tokens are none of a stream's"
            for one in scored:
                one.follow(now_s)

        calls.after = follow
        for one in scored:
            engine.submit(one.request)
        events.run()
        assert len(calls.named("ended")) == 3
        kept |= {one.request.attained for one in scored}
        ties += sum(one.ties for one in scored)
        together += sum(one.together for one in scored)
        late_stages += sum(one.request.missed and one.request.stage == 1 for one in scored)
    assert kept == {True, False}
    assert min(ties, together, late_stages) > 20


def test_an_exported_kv_cache_is_leased_until_it_is_released() -> None:
    events = clock()
    request = request_of("a", 40, 5)
    request.export = True
    engine, calls = engine_of(steps(PlannedStep({"a": 40}, shape_of(40), admitted=["a"])), events)
    total = engine.free_blocks
    engine.submit(request)
    assert engine.free_blocks == total - 3
    events.run()
    assert calls.named("first token") == [("a", START_S + 40 * TICK_S)]
    assert not calls.named("prompt done")
    assert not engine.requests
    assert (engine.free_blocks, engine.leased_blocks) == (total - 3, 3), "somebody may be reading it"
    engine.release(2)
    assert (engine.free_blocks, engine.leased_blocks) == (total - 1, 1)
    engine.release(2)
    assert (engine.free_blocks, engine.leased_blocks) == (total, 0), "no more than was leased"


def test_blocks_are_taken_as_a_stream_grows_and_given_back_at_its_end() -> None:
    events = clock()
    decode = PlannedStep({"a": 1})
    engine, calls = engine_of(steps(PlannedStep({"a": 31}, shape_of(31), admitted=["a"]), *[decode] * 3), events)
    total, held = engine.free_blocks, []
    request = request_of("a", 31, 4)
    engine.submit(request)
    for end in range(31, 35):
        held.append(request.work.held_blocks)
        assert engine.free_blocks == total - held[-1]
        events.run(START_S + end * TICK_S)
    assert held == [2, 2, 3, 3], "31 and 32 tokens take two blocks, 33 take three"
    assert engine.free_blocks == total
    assert calls.named("ended") == [("a", START_S + 34 * TICK_S)]
    assert calls.named("prompt done") == [("a", START_S + 31 * TICK_S)]
    assert len(calls.named("step ended")) == 4


def test_an_engine_that_reserves_output_takes_all_blocks_at_once_but_for_what_leaves() -> None:
    for export, blocks in ((False, 5), (True, 2)):
        events = clock()
        request = request_of("a", 32, 48)
        request.export = export
        engine, _ = engine_of(steps(PlannedStep({"a": 32}, admitted=["a"])), events, reserves_output=True)
        engine.submit(request)
        assert request.work.held_blocks == blocks


def test_a_composer_that_grants_more_memory_than_there_is_is_a_fault() -> None:
    engine, _ = engine_of(steps(PlannedStep({"a": 33}, admitted=["a"])), clock(), exact_machine(kv_blocks=2))
    with pytest.raises(MemoryError, match="3 blocks of 2"):
        engine.submit(request_of("a", 33, 1))


def test_a_prompt_in_chunks_has_its_first_token_with_the_last() -> None:
    events = clock()
    engine, calls = engine_of(
        steps(PlannedStep({"a": 30}, shape_of(30), admitted=["a"]), PlannedStep({"a": 10})), events
    )
    request = request_of("a", 40, 2)
    engine.submit(request)
    events.run(START_S + 30 * TICK_S)
    assert (request.work.computed_tokens, request.work.pending_tokens, request.generated) == (30, 10, 0)
    events.run()
    assert (request.work.computed_tokens, request.work.pending_tokens, request.generated) == (40, 1, 1)
    assert request.work.decoding
    assert request.first_s == START_S + 31 * TICK_S
    assert calls.named("prompt done") == [("a", START_S + 31 * TICK_S)]
    assert (engine.usage.steps, engine.usage.tokens, engine.usage.busy_s) == (2, 31, 31 * TICK_S)


def test_a_preempted_request_computes_its_prompt_and_its_output_again() -> None:
    events = clock()
    plan = steps(
        PlannedStep({"a": 20}, admitted=["a"]),
        PlannedStep({"a": 1}),
        PlannedStep({"b": 8}, preempted=["a"], admitted=["b"]),
        PlannedStep({"a": 22}, admitted=["a"]),
    )
    engine, calls = engine_of(plan, events)
    total = engine.free_blocks
    first, second = request_of("a", 20, 9), request_of("b", 8, 1)
    engine.submit(first)
    engine.submit(second)
    events.run(START_S + 2 * TICK_S)
    assert (first.work.computed_tokens, first.work.pending_tokens, first.work.held_blocks) == (0, 22, 0)
    assert not first.work.running
    assert not first.work.decoding
    assert engine.free_blocks == total - 1, "the other's"
    events.run()
    assert engine.usage.preemptions == 1
    assert (first.generated, first.work.computed_tokens, first.work.running) == (3, 22, True)
    assert calls.named("prompt done") == [("a", START_S + TICK_S), ("a", START_S + 4 * TICK_S)]


def test_a_pulled_kv_cache_is_waited_for_and_lacks_the_last_token() -> None:
    events = clock()
    engine, calls = engine_of(steps(PlannedStep(admitted=["a"]), PlannedStep({"a": 1})), events)
    request = request_of("a", 40, 5)
    request.take(1, START_S)
    engine.submit(request, pulls=True)
    assert calls.named("pull") == [("a", START_S)]
    assert request.work.pulls_kv
    assert request.work.held_blocks == 3
    engine.landed(request)
    assert not request.work.pulls_kv
    assert (request.work.computed_tokens, request.work.pending_tokens) == (40, 1)
    events.run()
    assert request.generated == 2
    assert calls.named("prompt done") == [("a", START_S + TICK_S)]


def test_what_lands_after_its_request_has_gone_changes_nothing() -> None:
    engine, _ = engine_of(steps(), clock())
    request = request_of("a", 40, 5)
    request.work.pulls_kv = True
    engine.landed(request)
    assert request.work.pulls_kv
    assert request.work.computed_tokens == 0


def test_a_failed_engine_loses_everything_and_its_step_brings_nothing() -> None:
    events = clock()
    engine, calls = engine_of(steps(PlannedStep({"a": 8}, shape_of(8), admitted=["a"]), PlannedStep()), events)
    total = engine.free_blocks
    request = request_of("a", 8, 1, prefix=(3,), prefix_block_tokens=4)
    engine.submit(request)
    engine.leased_blocks, engine.free_blocks = 7, engine.free_blocks - 7
    engine.prefixes.keep(request.offered, 1000)
    assert engine.fail() == [request]
    assert engine.prefixes.peek(request.offered) == 0
    engine.release(5)
    assert (engine.free_blocks, engine.leased_blocks) == (total, 0)
    events.run()
    assert request.generated == 0
    assert not calls.made
    waits = request_of("b", 8, 1)
    engine.submit(waits)
    assert not waits.work.running, "a failed engine composes nothing"
    assert engine.works == [waits.work]


def test_an_engine_that_is_back_goes_on_with_what_came_meanwhile() -> None:
    events = clock()
    engine, calls = engine_of(steps(PlannedStep({"a": 8}, admitted=["a"])), events)
    engine.fail()
    engine.submit(request_of("a", 8, 1))
    engine.recover()
    events.run()
    assert calls.named("ended") == [("a", START_S + TICK_S)]


def test_only_what_was_computed_and_fits_is_found_in_the_cache_again() -> None:
    events = clock()
    engine, _ = engine_of(steps(PlannedStep({"a": 40}, admitted=["a"]), PlannedStep({"b": 20}, admitted=["b"])), events)
    prefix = (1, 2)
    engine.submit(request_of("a", 40, 1, prefix=prefix, prefix_block_tokens=20))
    events.run()
    follower = request_of("b", 40, 1, prefix=prefix, prefix_block_tokens=20)
    engine.submit(follower)
    assert (follower.work.computed_tokens, follower.work.pending_tokens) == (39, 1), "the last is computed in any case"
    stranger = request_of("c", 40, 1, prefix=(1, 9), prefix_block_tokens=20)
    assert engine.prefixes.peek(stranger.offered) == 20
    pulling = request_of("d", 40, 5, prefix=prefix, prefix_block_tokens=20)
    engine.submit(pulling, pulls=True)
    assert pulling.work.computed_tokens == 0, "what is pulled comes from elsewhere"


def test_a_cache_keeps_what_was_used_last_in_the_memory_that_is_left() -> None:
    engine, _ = engine_of(steps(), clock(), exact_machine(kv_blocks=4))
    cache = engine.prefixes
    offers = {name: request_of(str(name), 40, 1, prefix=(name,), prefix_block_tokens=32).offered for name in (1, 2, 3)}
    cache.keep(offers[1], 4 * BLOCK_TOKENS)
    cache.keep(offers[2], 4 * BLOCK_TOKENS)
    assert cache.use(offers[1]) == 32
    cache.keep(offers[3], 4 * BLOCK_TOKENS)
    assert [cache.peek(offers[name]) for name in (1, 2, 3)] == [32, 0, 32]
    cache.shrink(BLOCK_TOKENS)
    assert [cache.peek(offers[name]) for name in (1, 2, 3)] == [0, 0, 0]


def test_waiting_counts_from_when_the_engine_was_given_the_request() -> None:
    events = clock()
    engine, _ = engine_of(steps(), events)
    request = request_of("a", 8, 1, arrival_s=START_S - 3)
    events.at(START_S + 2, lambda: engine.submit(request))
    events.run()
    assert request.work.waiting_since_s == START_S + 2
