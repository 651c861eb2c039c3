"""The front end of a vLLM engine, with an EngineCore that does what the test says and real claims in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.engine.kv.backend import ClaimRefusedError
from services.engine.kv.handle import KvHandle, KvPull, LeaseOutcome
from services.engine.protocol import (
    EngineDeadError,
    EngineEvent,
    EngineFacts,
    EngineLoad,
    EngineRequest,
    EngineStep,
    FinishReason,
    LeaseClosed,
    RequestOutput,
    RequestRejected,
    SamplingOptions,
    Scheduling,
)
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.core_client import CoreDeadError
from services.engine.vllm.frontend.core_request import leaves_kv
from services.engine.vllm.frontend.engine import VllmEngine
from services.engine.vllm.frontend.sampling import UnservableRequestError
from services.engine.vllm.shared.core_report import STATS_KEY, CoreReport
from services.engine.vllm.shared.nixl_terms import DEADLINE_KEY
from services.slo.performance import StepShape
from tests.support.engine_facts import FACTS as SMALL
from tests.support.virtual_time import BEGAN_S, run_virtual
from tests.unit.services.engine.kv.kv_support import (
    COMPATIBILITY,
    NIXL,
    PROMPT,
    TestEngine,
    nixl_params,
    now_s,
    settle,
)

FACTS = replace(SMALL, compatibility=COMPATIBILITY, kv_bytes_per_token=1000, kv_lease_s=10.0)
LOAD = EngineLoad(2, 1, 64, 20, 4)
STEP_SHAPE = StepShape(decode_requests=1, decode_tokens=1)
OTHER_CORE_ID = "of a request that has ended"


class FakeCore:
    """Stands for `CoreClient`: remembers its orders, and sends the messages that a test makes."""

    def __init__(self) -> None:
        self.added: dict[str, Any] = {}
        self.aborted: list[str] = []
        self.calls: list[tuple[Any, ...]] = []
        self.dead = False
        self._messages: asyncio.Queue[Any] = asyncio.Queue()

    def request(self, request: EngineRequest, core_id: str, facts: EngineFacts) -> Any:
        if not request.token_ids:
            raise UnservableRequestError("token_ids: the prompt is empty")
        return SimpleNamespace(core_id=core_id, sampling_params=SimpleNamespace(extra_args={}))

    async def add(self, work: Any) -> None:
        self._check()
        self.added[work.core_id] = work.sampling_params.extra_args

    async def abort(self, core_id: str) -> None:
        self._check()
        self.aborted.append(core_id)

    async def call(self, *call: Any) -> Any:
        self._check()
        self.calls.append(call)
        return {"steps": 3.0}

    async def next_message(self) -> Any:
        message = await self._messages.get()
        if message is None:
            raise CoreDeadError("killed by the test")
        return message

    def say(self, *outputs: Any, **report: Any) -> None:
        """Send one message; with a report if any of its fields are given."""
        stats = None
        if report:
            fields: dict[str, Any] = {"step": 1, "duration_s": 0.05, "shape": StepShape(), "load": LOAD}
            wire = CoreReport(**fields | report).to_wire()
            stats = SimpleNamespace(kv_connector_stats={STATS_KEY: wire})
        self._messages.put_nowait(SimpleNamespace(scheduler_stats=stats, outputs=list(outputs), timestamp=now_s()))

    def die(self) -> None:
        self.dead = True
        self._messages.put_nowait(None)

    def _check(self) -> None:
        if self.dead:
            raise CoreDeadError("killed by the test")


class Engine:
    """A `VllmEngine` on a `FakeCore`, and everything that it said."""

    def __init__(self) -> None:
        self.core = FakeCore()
        self.engine = VllmEngine(Path("/no/model"), VllmEngineConfig(), "prefill-0")
        self.said: list[EngineEvent] = []
        self.died: str | None = None

    async def listen(self) -> None:
        try:
            async for event in self.engine.events():
                self.said.append(event)
        except EngineDeadError as error:
            self.died = str(error)

    async def submit(self, request_id: str = "r", kv: KvHandle | None = None, **more: Any) -> str:
        """Submit `PROMPT`, and return the name that the request has in EngineCore."""
        request = EngineRequest(request_id, PROMPT, 0, SamplingOptions(max_tokens=4), kv_source=kv, **more)
        await self.engine.submit(request)
        live = self.engine._live.find(request_id)
        assert live is not None
        return live.core_id

    @property
    def steps(self) -> list[EngineStep]:
        return [event for event in self.said if isinstance(event, EngineStep)]

    @property
    def outputs(self) -> list[RequestOutput]:
        return [output for step in self.steps for output in step.outputs]


def output(core_id: str, *token_ids: int, **fields: Any) -> Any:
    """One output as EngineCore sends it."""
    defaults: dict[str, Any] = {
        "new_logprobs": None,
        "finish_reason": None,
        "stop_reason": None,
        "events": None,
        "prefill_stats": None,
        "kv_transfer_params": None,
    }
    return SimpleNamespace(request_id=core_id, new_token_ids=list(token_ids), **defaults | fields)


@contextlib.asynccontextmanager
async def engine_and_exporter() -> AsyncIterator[tuple[Engine, TestEngine]]:
    made, exporter = Engine(), TestEngine(NIXL, "prefill-1")
    await made.engine._begin(made.core, FACTS)  # type: ignore[arg-type]
    await exporter.kv.start("127.0.0.1")
    listening = asyncio.create_task(made.listen())
    try:
        yield made, exporter
    finally:
        await made.engine.shutdown()
        await exporter.kv.stop()
        await listening


def tell(story: Callable[[Engine, TestEngine], Awaitable[None]]) -> None:
    async def told() -> None:
        async with engine_and_exporter() as (made, exporter):
            await story(made, exporter)

    run_virtual(told())


def test_a_request_goes_to_engine_core_and_comes_back() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        core_id = await made.submit()
        assert list(made.core.added) == [core_id]
        scheduling = Scheduling(predicted_s=0.04, drafted=3)
        made.core.say(output(core_id, 5, 6), shape=STEP_SHAPE, scheduling=scheduling)
        made.core.say(output(core_id, 7, finish_reason="length"), shape=STEP_SHAPE)
        await settle()
        first, last = made.steps
        assert (first.step, first.duration_s, first.shape, first.load) == (1, 0.05, STEP_SHAPE, LOAD)
        assert first.scheduling == scheduling
        assert [(out.request_id, out.token_ids, out.finish_reason) for out in first.outputs] == [("r", (5, 6), None)]
        assert last.step == 2
        assert last.outputs[0].finish_reason is FinishReason.LENGTH
        assert made.engine.load() == LOAD
        assert await made.submit("r") != core_id, "the name is free again, and new in EngineCore"

    tell(story)


def test_before_the_first_message_every_block_is_free() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        assert made.engine.load() == EngineLoad(0, 0, 64, 0, 0)

    assert Engine().engine.load() == EngineLoad(0, 0, 0, 0, 0)
    tell(story)


def test_an_unservable_request_and_a_name_in_use_are_rejected() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        await made.submit()
        await made.engine.submit(EngineRequest("r", PROMPT, 0, SamplingOptions(max_tokens=4)))
        await made.engine.submit(EngineRequest("empty", (), 0, SamplingOptions(max_tokens=4)))
        await settle()
        assert made.said == [
            RequestRejected("r", True, "request_id is in use"),
            RequestRejected("empty", True, "token_ids: the prompt is empty"),
        ]
        assert len(made.core.added) == 1

    tell(story)


def test_a_step_tells_of_prompts_in_part_and_not_of_requests_that_have_ended() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        core_id = await made.submit()
        made.core.say(output(OTHER_CORE_ID, 1), shape=STEP_SHAPE, prefilled={core_id: 32, OTHER_CORE_ID: 9}, pulls={})
        await settle()
        assert made.outputs == [RequestOutput("r", (), prefilled_tokens=32)]

    tell(story)


def test_outputs_without_computation_are_a_step_without_a_shape() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        core_id = await made.submit()
        made.core.say(output(core_id, finish_reason="abort"))
        made.core.say(load=EngineLoad(0, 0, 64, 0, 0))
        made.core.say()
        await settle()
        (step,) = made.steps
        assert (step.duration_s, step.shape) == (0.0, StepShape())
        assert made.engine.load() == EngineLoad(0, 0, 64, 0, 0)

    tell(story)


def test_an_exported_kv_cache_can_be_claimed_until_engine_core_ends_its_lease() -> None:
    async def story(made: Engine, other: TestEngine) -> None:
        core_id = await made.submit(export_kv=True)
        params = nixl_params(PROMPT, now_s() + 10.0)
        made.core.say(output(core_id, 5, finish_reason="length", kv_transfer_params=params), shape=STEP_SHAPE)
        await settle()
        handle = made.outputs[0].kv
        assert handle is not None
        assert (handle.lease_id, handle.worker_id, handle.tokens, handle.kv_bytes) == (core_id, "prefill-0", 50, 64_000)
        claim = await other.kv.claim(handle, PROMPT, now_s())
        claim.confirm()
        made.core.say(load=LOAD, closed_leases={core_id: LeaseOutcome.PULLED})
        await settle()
        assert made.said[-1] == LeaseClosed(core_id, LeaseOutcome.PULLED)
        assert made.core.calls == []
        with pytest.raises(ClaimRefusedError, match="the lease was pulled"):
            await other.kv.claim(handle, PROMPT, now_s())

    tell(story)


def test_an_output_without_a_lease_has_no_handle() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        core_id = await made.submit(export_kv=True)
        ended = output(core_id, 5, finish_reason="stop", kv_transfer_params={"do_remote_prefill": False})
        made.core.say(ended, shape=STEP_SHAPE)
        await settle()
        assert made.outputs[0].kv is None

    tell(story)


def test_a_released_lease_is_freed_in_engine_core() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        core_id = await made.submit(export_kv=True)
        params = nixl_params(PROMPT, now_s() + 10.0)
        made.core.say(output(core_id, 5, finish_reason="length", kv_transfer_params=params), shape=STEP_SHAPE)
        await settle()
        await made.engine.release_kv(core_id)
        await made.engine.release_kv("unknown")
        await settle()
        assert made.core.calls == [("release_lease", core_id)]

    tell(story)


def test_a_kv_cache_is_claimed_before_engine_core_hears_of_the_request() -> None:
    async def story(made: Engine, exporter: TestEngine) -> None:
        core_id = await made.submit(kv=exporter.export())
        assert made.core.added == {}
        await settle()
        params = made.core.added[core_id]["kv_transfer_params"]
        assert (params["do_remote_prefill"], params["remote_num_tokens"]) == (True, 50)
        assert params[DEADLINE_KEY] == BEGAN_S + 9.5
        made.core.say(output(core_id, 5), shape=STEP_SHAPE, pulls={core_id: KvPull(64_000, 0.01)})
        await settle()
        timings = made.outputs[0].timings
        assert timings is not None
        assert (timings.kv_pull, timings.kv_recompute_reason) == (KvPull(64_000, 0.01), "")
        await asyncio.sleep(20.0)
        assert exporter.freed == {}, "the exporter hears of the pull over NIXL"

    tell(story)


def test_a_kv_cache_that_cannot_be_claimed_is_computed_here() -> None:
    async def story(made: Engine, exporter: TestEngine) -> None:
        handle = exporter.export()
        exporter.kv.release("a")
        core_id = await made.submit(kv=handle)
        await settle()
        assert made.core.added == {core_id: {}}
        made.core.say(output(core_id, 5), shape=STEP_SHAPE)
        await settle()
        timings = made.outputs[0].timings
        assert timings is not None
        assert timings.kv_recompute_reason == "the lease was released"

    tell(story)


def test_a_pull_that_fails_in_engine_core_gives_the_lease_back() -> None:
    async def story(made: Engine, exporter: TestEngine) -> None:
        core_id = await made.submit(kv=exporter.export())
        await settle()
        made.core.say(load=LOAD, recomputes={core_id: "the transfer failed", OTHER_CORE_ID: "?"})
        await settle()
        assert exporter.freed["a"][0] is LeaseOutcome.RELEASED
        made.core.say(output(core_id, 5), shape=STEP_SHAPE)
        await settle()
        timings = made.outputs[0].timings
        assert timings is not None
        assert timings.kv_recompute_reason == "the transfer failed"

    tell(story)


def test_a_kv_cache_that_was_not_needed_is_given_back_with_the_first_token() -> None:
    """All of it was in the prefix cache."""

    async def story(made: Engine, exporter: TestEngine) -> None:
        core_id = await made.submit(kv=exporter.export())
        await settle()
        made.core.say(output(core_id, 5), shape=STEP_SHAPE)
        await settle()
        assert exporter.freed["a"][0] is LeaseOutcome.RELEASED

    tell(story)


def test_an_abort_while_the_claim_is_under_way_never_reaches_engine_core() -> None:
    async def story(made: Engine, exporter: TestEngine) -> None:
        await made.submit(kv=exporter.export())
        await made.engine.abort("r")
        await made.engine.abort("r")
        await settle()
        assert made.core.added == {}
        assert made.core.aborted == []
        (last,) = made.outputs
        assert (last.request_id, last.finish_reason) == ("r", FinishReason.ABORT)
        assert exporter.freed["a"][0] is LeaseOutcome.RELEASED
        assert "r" not in made.engine._live

    tell(story)


def test_an_abort_in_engine_core_is_ordered_once() -> None:
    async def story(made: Engine, exporter: TestEngine) -> None:
        core_id = await made.submit(kv=exporter.export())
        await settle()
        await made.engine.abort("r")
        await made.engine.abort("r")
        await made.engine.abort("unknown")
        assert made.core.aborted == [core_id]
        made.core.say(output(core_id, finish_reason="abort"))
        await settle()
        assert made.outputs[0].finish_reason is FinishReason.ABORT
        assert exporter.freed["a"][0] is LeaseOutcome.RELEASED

    tell(story)


def test_an_abort_that_overtakes_the_order_follows_it() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        adding = asyncio.Event()
        add = made.core.add

        async def slow(work: Any) -> None:
            await adding.wait()
            await add(work)

        made.core.add = slow  # type: ignore[method-assign]
        submitted = asyncio.create_task(made.submit())
        await asyncio.sleep(0)
        await made.engine.abort("r")
        assert made.core.aborted == []
        adding.set()
        core_id = await submitted
        assert made.core.aborted == [core_id]

    tell(story)


def test_a_dead_engine_core_ends_the_events() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        await made.submit()
        made.core.die()
        await settle()
        assert made.died == "killed by the test"
        with pytest.raises(EngineDeadError, match="killed by the test"):
            await made.engine.submit(EngineRequest("s", PROMPT, 0, SamplingOptions(max_tokens=4)))
        await made.engine.abort("r")
        assert made.core.aborted == []

    tell(story)


def test_an_order_that_a_dead_engine_core_does_not_take_kills_the_engine() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        made.core.dead = True
        with pytest.raises(EngineDeadError, match="killed by the test"):
            await made.engine.scheduling_figures()
        await made.submit()
        await settle()
        assert made.died == "killed by the test"

    tell(story)


def test_a_message_that_makes_no_sense_kills_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        core_id = await made.submit(export_kv=True)
        params = {"do_remote_prefill": True}
        made.core.say(output(core_id, 5, finish_reason="length", kv_transfer_params=params), shape=STEP_SHAPE)
        await settle()
        assert made.died is not None
        assert made.died.startswith("the adapter failed: transfer parameters lack")

    tell(story)
    assert "the vLLM adapter failed" in caplog.text


def test_figures_come_from_the_scheduler() -> None:
    async def story(made: Engine, _: TestEngine) -> None:
        assert await made.engine.scheduling_figures() == {"steps": 3.0}
        assert made.core.calls == [("scheduling_figures",)]

    tell(story)


def test_an_engine_that_was_not_started_or_was_shut_down_takes_nothing() -> None:
    async def story(made: Engine, exporter: TestEngine) -> None:
        await made.submit(kv=exporter.export())
        await settle()
        await made.engine.shutdown()
        await settle()
        assert exporter.freed["a"][0] is LeaseOutcome.RELEASED, "its claims end with it"
        with pytest.raises(EngineDeadError, match="shut down"):
            await made.submit("s")
        assert made.died is None

    tell(story)


@pytest.mark.parametrize(
    ("max_tokens", "generated", "context", "leaves"),
    [
        (4, 0, 1000, True),
        (1, 0, 1000, False),
        (4, 3, 1000, False),
        (4, 2, 1000, True),
        (4, 0, 51, False),
        (4, 0, 52, True),
    ],
)
def test_an_output_that_ends_with_its_first_token_leaves_no_kv_cache(
    max_tokens: int, generated: int, context: int, leaves: bool
) -> None:
    request = EngineRequest("r", PROMPT, generated, SamplingOptions(max_tokens=max_tokens), export_kv=True)
    assert leaves_kv(request, context) is leaves
    assert not leaves_kv(EngineRequest("r", PROMPT, 0, SamplingOptions(max_tokens=4)), 1000)
