"""Bookkeeping for the tests of the emulated engine."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from services.engine.emulated.config import EmulatedEngineConfig
from services.engine.emulated.engine import EmulatedEngine
from services.engine.emulated.tokens import TokenStream, Vocabulary
from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import (
    EngineEvent,
    EngineStep,
    FinishReason,
    LeaseClosed,
    RequestOutput,
    RequestRejected,
    SamplingOptions,
)
from tests.support.virtual_time import STUCK_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def small_config(**options: Any) -> EmulatedEngineConfig:
    """An engine without noise whose step of n tokens takes 10 ms + n * 1 ms."""
    defaults: dict[str, Any] = {
        "overhead_s": 0.01,
        "per_token_s": 0.001,
        "per_context_token_s": 0.0,
        "step_time_noise": 0.0,
        "block_tokens": 4,
        "kv_blocks": 64,
        "kv_bytes_per_token": 1000,
        "max_step_tokens": 32,
        "max_context_tokens": 200,
        "link_latency_s": 0.01,
        "link_bytes_per_s": 1e6,
        "kv_lease_s": 5.0,
        "lease_margin_s": 0.5,
    }
    return EmulatedEngineConfig.model_validate(defaults | options)


def vocabulary(config: EmulatedEngineConfig) -> Vocabulary:
    return Vocabulary(config.vocabulary_size, config.eos_token_id, config.special_tokens, config.mean_output_tokens)


def undisturbed(
    config: EmulatedEngineConfig, token_ids: tuple[int, ...], sampling: SamplingOptions, generated_tokens: int = 0
) -> tuple[list[int], FinishReason]:
    """What one engine generates that has nothing else to do."""
    limit = min(config.max_context_tokens, config.kv_blocks * config.block_tokens)
    stream = TokenStream(vocabulary(config), sampling, token_ids, generated_tokens, limit)
    tokens = []
    while True:
        draw = stream.draw()
        tokens.append(draw.token_id)
        if draw.finish_reason is not None:
            return tokens, draw.finish_reason


def check_books(engine: EmulatedEngine) -> None:
    """What each request holds and has computed, which adds up at every moment."""
    core = engine._core
    for queued in core._waiting.values():
        work = queued.schedulable
        assert (work.computed_tokens, work.held_blocks, work.decoding, work.running) == (0, 0, False, False)
    holders = [*core._running.values(), *core._pulling.values()]
    for holder in holders:
        work = holder.schedulable
        assert work.running
        assert 0 <= work.computed_tokens < holder.stream.context_tokens
        assert work.pending_tokens == holder.stream.context_tokens - work.computed_tokens
        assert work.held_blocks * engine._config.block_tokens >= work.computed_tokens
    assert core.blocks.held == sum(holder.schedulable.held_blocks for holder in holders)
    assert core.blocks.leased == sum(lease.offer.blocks for lease in engine._kv._leases._open.values())


class Recorder:
    """Consumes an engine's events and remembers what they say."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self.engine = engine
        self.steps: list[EngineStep] = []
        self.outputs: dict[str, list[RequestOutput]] = defaultdict(list)
        self.rejected: dict[str, RequestRejected] = {}
        self.closed: dict[str, LeaseOutcome] = {}
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._consume())

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def finished(self, request_id: str) -> list[RequestOutput]:
        await self.until(lambda: request_id in self.rejected or self.finish_reason(request_id) is not None)
        return self.outputs[request_id]

    async def lease_closed(self, lease_id: str) -> LeaseOutcome:
        await self.until(lambda: lease_id in self.closed)
        return self.closed[lease_id]

    def tokens(self, request_id: str) -> list[int]:
        return [token_id for output in self.outputs[request_id] for token_id in output.token_ids]

    def finish_reason(self, request_id: str) -> FinishReason | None:
        outputs = self.outputs[request_id]
        return outputs[-1].finish_reason if outputs else None

    def handle(self, request_id: str) -> KvHandle:
        handle = self.outputs[request_id][-1].kv
        assert handle is not None
        return handle

    async def _consume(self) -> None:
        async for event in self.engine.events():
            self._record(event)
            self._changed.set()

    def _record(self, event: EngineEvent) -> None:
        match event:
            case EngineStep():
                assert event.step == len(self.steps) + 1
                self.steps.append(event)
                check_books(self.engine)
                for output in event.outputs:
                    assert self.finish_reason(output.request_id) is None, "an output after the last one"
                    if output.prefilled_tokens:
                        assert not output.token_ids
                        continue
                    assert (output.timings is None) == bool(self.outputs[output.request_id])
                    self.outputs[output.request_id].append(output)
            case RequestRejected():
                self.rejected[event.request_id] = event
            case LeaseClosed():
                assert event.lease_id not in self.closed, "a lease closed twice"
                self.closed[event.lease_id] = event.outcome


@asynccontextmanager
async def running_engine(
    config: EmulatedEngineConfig, worker_id: str = "w", model_fingerprint: str = "f"
) -> AsyncIterator[tuple[EmulatedEngine, Recorder]]:
    engine = EmulatedEngine(config, model="m", model_fingerprint=model_fingerprint, worker_id=worker_id)
    await engine.start()
    recorder = Recorder(engine)
    try:
        yield engine, recorder
    finally:
        await engine.shutdown()
        await asyncio.wait_for(recorder.task, STUCK_S)


def prompt(tokens: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(100 + (salt * 7919 + position * 31) % 40_000 for position in range(tokens))
