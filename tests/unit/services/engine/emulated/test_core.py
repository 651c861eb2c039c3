"""The requests of an emulated engine between steps that the test composes: blocks, pulls, preemptions, aborts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from services.engine.emulated.active_request import ActiveRequest
from services.engine.emulated.core import Core
from services.engine.emulated.tokens import Vocabulary
from services.engine.kv.compatibility import Compatibility
from services.engine.kv.handle import KvHandle, KvPull
from services.engine.protocol import EngineRequest, FinishReason, RequestOutput, SamplingOptions
from services.slo.composer import Composition, Limits, SchedulableRequest
from services.slo.performance import StepShape

BLOCK = 4
START_S = 300.0
HANDLE = KvHandle("l", "p", "e", 5.0, 9, 9000, Compatibility("m", "bf16", "", 1, BLOCK, "", ""), "{}", "secret")
PULL = KvPull(9000, 0.2)


@pytest.fixture
def core() -> Core:
    """A core of 16 blocks, and contexts of at most 40 tokens."""
    return Core(Limits(32, 8, BLOCK), kv_blocks=16, max_context_tokens=40, vocabulary=Vocabulary(100, 0, 3, 10**9))


def request(name: str = "a", tokens: int = 10, generated: int = 0, max_tokens: int = 20, **more: Any) -> EngineRequest:
    sampling = SamplingOptions(max_tokens=max_tokens, ignore_eos=True)
    return EngineRequest(name, tuple(range(10, 10 + tokens)), generated, sampling, **more)


def step(
    core: Core,
    grants: Mapping[str, int] | None = None,
    admitted: Sequence[str] = (),
    preempted: Sequence[str] = (),
    now_s: float = START_S,
) -> tuple[dict[str, RequestOutput], tuple[ActiveRequest, ...]]:
    """Begin a step as composed here and complete it after 0.1 s; return its outputs and the pulls it began."""
    composed = Composition(grants or {}, tuple(preempted), tuple(admitted), (), 1.0, 0.1, StepShape())

    def composer(works: Sequence[SchedulableRequest], free_blocks: int) -> Composition:
        assert free_blocks == core.blocks.free
        return composed

    _, pulls = core.begin_step(now_s, composer)
    outputs = [progress.output for progress in core.complete_step(composed, now_s + 0.1)]
    return {output.request_id: output for output in outputs}, pulls


def landed(core: Core, tokens: int = 9) -> ActiveRequest:
    """Submit a request that pulls its KV cache, and let the pull bring so many tokens."""
    core.submit(request(kv_source=HANDLE), START_S - 2.0)
    _, (pulling,) = step(core, admitted=["a"], now_s=START_S - 1.0)
    core.land(pulling, tokens, PULL)
    return pulling


def test_an_admitted_request_holds_the_blocks_of_its_prompt_at_once(core: Core) -> None:
    core.submit(request(tokens=10), START_S)
    assert core.blocks.held == 0
    outputs, _ = step(core, {"a": 6}, admitted=["a"])
    assert core.blocks.held == 3
    assert (outputs["a"].token_ids, outputs["a"].prefilled_tokens) == ((), 6)
    outputs, _ = step(core, {"a": 4})
    assert len(outputs["a"].token_ids) == 1
    for _ in range(2):
        step(core, {"a": 1})
    assert core.blocks.held == 3, "twelve tokens are in three blocks"
    step(core, {"a": 1})
    assert core.blocks.held == 4


def test_a_request_waits_until_its_first_step_and_says_so_once(core: Core) -> None:
    core.submit(request(), START_S - 1.5)
    step(core, {"a": 6}, admitted=["a"])
    outputs, _ = step(core, {"a": 4}, now_s=START_S + 0.5)
    timings = outputs["a"].timings
    assert timings is not None
    assert (timings.wait_s, timings.run_s) == pytest.approx((1.5, 0.6))
    assert (timings.kv_pull, timings.kv_recompute_reason) == (None, "")
    outputs, _ = step(core, {"a": 1})
    assert outputs["a"].timings is None


def test_a_request_ends_at_its_limit_and_frees_its_blocks(core: Core) -> None:
    core.submit(request(max_tokens=2), START_S)
    outputs, _ = step(core, {"a": 10}, admitted=["a"])
    assert outputs["a"].finish_reason is None
    outputs, _ = step(core, {"a": 1})
    assert outputs["a"].finish_reason is FinishReason.LENGTH
    assert (core.blocks.held, core.load().running_requests) == (0, 0)
    assert core.refusal(request()) is None, "its name is free again"


def test_what_a_pull_brought_is_not_computed_here(core: Core) -> None:
    active = landed(core)
    assert (active.schedulable.computed_tokens, active.schedulable.pending_tokens, active.schedulable.pulls_kv) == (
        9,
        1,
        False,
    )
    assert core.blocks.held == 3
    outputs, _ = step(core, {"a": 1}, now_s=START_S)
    timings = outputs["a"].timings
    assert timings is not None
    assert (timings.kv_pull, timings.kv_recompute_reason) == (PULL, "")
    assert (timings.wait_s, timings.run_s) == pytest.approx((2.0, 0.1)), "the pull is part of the wait"


def test_the_last_token_is_computed_whatever_a_pull_brings(core: Core) -> None:
    active = landed(core, tokens=10)
    assert (active.schedulable.computed_tokens, active.schedulable.pending_tokens) == (9, 1)
    fewer = Core(Limits(32, 8, BLOCK), 16, 40, Vocabulary(100, 0, 3, 10**9))
    assert landed(fewer, tokens=5).schedulable.pending_tokens == 5


def test_a_pull_that_brought_nothing_says_why(core: Core) -> None:
    core.submit(request(kv_source=HANDLE), START_S)
    _, (pulling,) = step(core, admitted=["a"])
    assert core.load().waiting_requests == 1, "it does not run yet"
    core.recompute(pulling, "the lease has expired")
    outputs, _ = step(core, {"a": 10})
    timings = outputs["a"].timings
    assert timings is not None
    assert (timings.kv_pull, timings.kv_recompute_reason) == (None, "the lease has expired")
    core.land(pulling, 9, PULL)
    assert pulling.kv_pull is None, "the pull is over"


def test_a_preemption_between_the_pull_and_the_first_token_loses_what_was_pulled_and_says_so(core: Core) -> None:
    active = landed(core)
    step(core, preempted=["a"])
    assert core.blocks.held == 0
    assert (active.schedulable.computed_tokens, active.schedulable.pending_tokens, active.schedulable.running) == (
        0,
        10,
        False,
    )
    outputs, pulls = step(core, {"a": 10}, admitted=["a"])
    assert pulls == (), "what is gone is not pulled again"
    timings = outputs["a"].timings
    assert timings is not None
    assert (timings.kv_pull, timings.kv_recompute_reason) == (None, "the KV blocks ran out after the pull")


def test_a_preemption_later_is_no_second_computation_to_be_told(core: Core) -> None:
    active = landed(core)
    step(core, {"a": 1})
    step(core, preempted=["a"])
    assert (active.kv_pull, active.kv_recompute_reason) == (PULL, "")
    assert (active.schedulable.decoding, active.schedulable.pending_tokens) == (False, 11)


def test_the_preempted_wait_before_those_that_came_later(core: Core) -> None:
    for name in "abc":
        core.submit(request(name, tokens=4), START_S)
    step(core, {"a": 4, "b": 4}, admitted=["a", "b"])
    step(core, preempted=["b"])
    assert list(core._waiting) == ["b", "c"]


def test_an_exported_kv_cache_is_leased_and_not_freed(core: Core) -> None:
    core.submit(request(export_kv=True), START_S)
    composed = Composition({"a": 10}, (), ("a",), (), 1.0, 0.1, StepShape())
    core.begin_step(START_S, lambda works, free: composed)
    (progress,) = core.complete_step(composed, START_S + 0.1)
    assert progress.export is not None
    assert (progress.export.tokens, progress.export.blocks) == (10, 3)
    assert progress.output.finish_reason is FinishReason.LENGTH
    assert (core.blocks.held, core.blocks.leased, core.blocks.free) == (0, 3, 13)


def test_an_abort_ends_what_no_step_computes_at_once_and_the_rest_with_its_step(core: Core) -> None:
    core.submit(request("a"), START_S)
    core.submit(request("b"), START_S)
    composed = Composition({"a": 10}, (), ("a",), (), 1.0, 0.1, StepShape())
    core.begin_step(START_S, lambda works, free: composed)
    assert core.abort("a", START_S) is None
    waiting = core.abort("b", START_S + 0.05)
    assert waiting is not None
    assert waiting.output.finish_reason is FinishReason.ABORT
    assert core.abort("b", START_S) is None
    (progress,) = core.complete_step(composed, START_S + 0.1)
    assert (progress.output.token_ids, progress.output.finish_reason) == ((), FinishReason.ABORT)
    assert core.blocks.held == 0
    assert core.load().running_requests == 0


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (request(tokens=10, generated=11), "generated_tokens is 11 of 10"),
        (request(tokens=10, generated=-1), "generated_tokens is -1 of 10"),
        (request(tokens=10, generated=10, max_tokens=20), "the prompt is empty"),
        (request(tokens=10, generated=5, max_tokens=5), "max_tokens is 5, 5 are generated"),
        (request("taken"), "'taken' is in use"),
        (request(tokens=40), "40"),
        (request(tokens=10, generated=9, max_tokens=10), None),
        (request(tokens=39), None),
    ],
)
def test_what_no_engine_like_this_can_take_is_refused(core: Core, wanted: EngineRequest, why: str | None) -> None:
    core.submit(request("taken"), START_S)
    refusal = core.refusal(wanted)
    assert (refusal is None) if why is None else (refusal is not None and why in refusal)


def test_contexts_are_no_longer_than_the_kv_cache() -> None:
    assert Core(Limits(32, 8, BLOCK), 5, 40, Vocabulary(100, 0, 3, 50)).max_context_tokens == 20


def test_load_tells_running_waiting_and_blocks(core: Core) -> None:
    for name in "abc":
        core.submit(request(name, tokens=4, kv_source=HANDLE if name == "b" else None), START_S)
    step(core, {"a": 4}, admitted=["a", "b"])
    load = core.load()
    assert (load.running_requests, load.waiting_requests) == (1, 2)
    assert (load.kv_blocks_total, load.kv_blocks_used, load.kv_blocks_leased) == (16, 2, 0)


def test_only_promises_make_the_pace(core: Core) -> None:
    core.submit(request("be", tpot_s=0.01, best_effort=True), START_S)
    assert core.tightest_tpot.tpot_s(START_S) > 0.01
    core.submit(request("promised", tpot_s=0.05, deadline_in_s=1.0), START_S)
    assert core.tightest_tpot.tpot_s(START_S) == 0.05


def test_deadlines_begin_when_the_request_comes(core: Core) -> None:
    core.submit(request("p", tpot_s=0.05, deadline_in_s=1.0), START_S)
    core.submit(request("export", tpot_s=0.05, deadline_in_s=1.0, export_kv=True), START_S)
    core.submit(request("odd", tpot_s=-1.0, deadline_in_s=1.0), START_S)
    works = {name: active.schedulable for name, active in core._requests.items()}
    assert (works["p"].due_s, works["p"].tpot_s) == (START_S + 1.0, 0.05)
    assert works["export"].due_s == START_S + 1.0
    assert works["export"].tpot_s == float("inf"), "it decodes elsewhere"
    assert (works["odd"].due_s, works["odd"].tpot_s, core.contracts_malformed) == (float("inf"), float("inf"), 1)


def test_a_step_that_ends_on_the_clock_before_it_was_composed_took_no_time(core: Core) -> None:
    core.submit(request(tokens=4), START_S)
    composed = Composition({"a": 4}, (), ("a",), (), 1.0, 0.1, StepShape())
    core.begin_step(START_S + 0.5, lambda works, free: composed)
    (progress,) = core.complete_step(composed, START_S + 0.4999)
    timings = progress.output.timings
    assert timings is not None
    assert (timings.wait_s, timings.run_s) == (0.5, 0.0)
