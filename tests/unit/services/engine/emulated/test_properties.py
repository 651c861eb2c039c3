"""Whatever is ordered in whatever order: no block leaks, no token is lost, repeated or changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.engine.kv.handle import KvHandle
from services.engine.protocol import EngineLoad, EngineRequest, FinishReason, SamplingOptions
from tests.support.virtual_time import run_virtual
from tests.unit.services.engine.emulated.emulated_support import (
    Recorder,
    prompt,
    running_engine,
    small_config,
    undisturbed,
)

CONFIG = small_config(
    kv_blocks=14,
    max_step_tokens=16,
    max_running_requests=4,
    max_context_tokens=50,
    mean_output_tokens=16,
    kv_lease_s=1.0,
    lease_margin_s=0.2,
    link_bytes_per_s=2e5,
    step_time_noise=0.1,
)


@dataclass(frozen=True)
class Submit:
    engine: int
    prompt_tokens: int
    sampling: SamplingOptions
    export: bool


@dataclass(frozen=True)
class Continue:
    """Take a finished export to an engine; with `moved` tokens generated since, as after the loss of a worker.

    Exports count from the latest.
    """

    engine: int
    export: int
    moved: int
    export_again: bool


@dataclass(frozen=True)
class HandOver:
    """Submit, wait a moment, continue."""

    submit: Submit
    wait_s: float
    continuation: Continue


@dataclass(frozen=True)
class Abort:
    request: int


@dataclass(frozen=True)
class Release:
    export: int


@dataclass(frozen=True)
class Wait:
    duration_s: float


Order = Submit | Continue | HandOver | Abort | Release | Wait

engines = st.integers(0, 1)
positions = st.integers(0, 30)
sampling_options = st.builds(
    SamplingOptions,
    max_tokens=st.integers(2, 25),
    min_tokens=st.integers(0, 8),
    seed=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    ignore_eos=st.booleans(),
)
prompt_lengths = st.integers(1, 40)
continuations = st.builds(Continue, engines, positions, st.integers(0, 3), st.booleans())
exports = st.builds(Submit, engines, prompt_lengths, sampling_options, st.just(True))
orders = st.lists(
    st.one_of(
        st.builds(Submit, engines, prompt_lengths, sampling_options, st.booleans()),
        continuations,
        st.builds(HandOver, exports, st.sampled_from([0.06, 0.2]), continuations),
        st.builds(HandOver, exports, st.sampled_from([0.06, 0.2]), continuations),
        st.builds(Abort, positions),
        st.builds(Release, positions),
        st.builds(Wait, st.sampled_from([0.001, 0.02, 0.1, 0.3, 1.2])),
    ),
    min_size=4,
    max_size=30,
)


class Story:
    """Gives the orders and knows what must come of them."""

    def __init__(self, recorders: list[Recorder]) -> None:
        self.recorders = recorders
        self.requests: list[tuple[Recorder, EngineRequest]] = []

    async def give(self, order: Order) -> None:
        match order:
            case Submit():
                token_ids = prompt(order.prompt_tokens, salt=order.prompt_tokens)
                await self._submit(order.engine, token_ids, 0, order.sampling, order.export, None)
            case Continue():
                finished = self._exports()
                if finished:
                    recorder, source = finished[-1 - order.export % len(finished)]
                    whole, _ = undisturbed(CONFIG, source.token_ids, source.sampling, source.generated_tokens)
                    moved = whole[: 1 + min(order.moved, len(whole) - 2)]
                    await self._submit(
                        order.engine,
                        (*source.token_ids, *moved),
                        source.generated_tokens + len(moved),
                        source.sampling,
                        order.export_again,
                        recorder.handle(source.request_id),
                    )
            case HandOver():
                await self.give(order.submit)
                await asyncio.sleep(order.wait_s)
                await self.give(order.continuation)
            case Abort():
                if self.requests:
                    recorder, request = self.requests[order.request % len(self.requests)]
                    await recorder.engine.abort(request.request_id)
            case Release():
                finished = self._exports()
                if finished:
                    recorder, request = finished[-1 - order.export % len(finished)]
                    await recorder.engine.release_kv(recorder.handle(request.request_id).lease_id)
            case Wait():
                await asyncio.sleep(order.duration_s)

    def _exports(self) -> list[tuple[Recorder, EngineRequest]]:
        return [
            (recorder, request)
            for recorder, request in self.requests
            if any(output.kv for output in recorder.outputs[request.request_id])
        ]

    async def _submit(
        self,
        engine: int,
        token_ids: tuple[int, ...],
        generated_tokens: int,
        sampling: SamplingOptions,
        export: bool,
        source: KvHandle | None,
    ) -> None:
        request = EngineRequest(
            f"r{len(self.requests)}", token_ids, generated_tokens, sampling, export_kv=export, kv_source=source
        )
        self.requests.append((self.recorders[engine], request))
        await self.recorders[engine].engine.submit(request)

    def check(self) -> None:
        for recorder, request in self.requests:
            name = request.request_id
            if name in recorder.rejected:
                assert recorder.tokens(name) == []
                continue
            tokens, reason = undisturbed(CONFIG, request.token_ids, request.sampling, request.generated_tokens)
            if request.export_kv and len(tokens) > 1:
                tokens, reason = tokens[:1], FinishReason.LENGTH
            if recorder.finish_reason(name) is FinishReason.ABORT:
                assert recorder.tokens(name) == tokens[: len(recorder.tokens(name))]
            else:
                assert recorder.tokens(name) == tokens
                assert recorder.finish_reason(name) is reason
        for recorder in self.recorders:
            leased = {output.kv.lease_id for outputs in recorder.outputs.values() for output in outputs if output.kv}
            assert set(recorder.closed) == leased
            assert recorder.engine.load() == EngineLoad(0, 0, CONFIG.kv_blocks, 0, 0)
            for step in recorder.steps:
                assert step.load.kv_blocks_leased <= step.load.kv_blocks_used <= CONFIG.kv_blocks
                assert step.shape.tokens <= CONFIG.max_step_tokens


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(orders)
def test_nothing_leaks_and_every_output_is_that_of_an_undisturbed_run(order_list: list[Order]) -> None:
    async def run() -> None:
        async with running_engine(CONFIG, "a") as (_, first), running_engine(CONFIG, "b") as (_, second):
            story = Story([first, second])
            for order in order_list:
                await story.give(order)
            await asyncio.sleep(60)
            story.check()

    run_virtual(run())


def test_pull_recomputation_and_preemption_in_one_story() -> None:
    """The same check on a sequence that is known to pull, recompute, expire and preempt."""
    free = SamplingOptions(max_tokens=25, ignore_eos=True)

    async def run() -> None:
        async with running_engine(CONFIG, "a") as (_, first), running_engine(CONFIG, "b") as (_, second):
            story = Story([first, second])
            known: list[Order] = [
                *(Submit(0, tokens, replace(free, seed=tokens), True) for tokens in (9, 12, 17)),
                Wait(0.3),
                *(Continue(1, position, 0, False) for position in range(3)),
                Submit(1, 20, free, False),
                Wait(0.02),
                Release(2),
                Wait(60),
            ]
            for order in known:
                await story.give(order)
            story.check()
            timings = [outputs[0].timings for outputs in second.outputs.values()]
            assert any(timing and timing.kv_pull for timing in timings)
            assert any(timing and timing.kv_recompute_reason for timing in timings)

    run_virtual(run())
