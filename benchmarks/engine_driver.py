"""One real engine, pinned to a core, and what became of every request it was given."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from services.config.load import load_settings
from services.engine.protocol import EngineFacts, EngineRequest, EngineStep, RequestRejected, SamplingOptions
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.engine import VllmEngine
from services.model.directory import locate_model
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract
from services.slo.fit_quality import Row


@dataclass
class Tracked:
    """One request as its client sees it. Times on this process's monotonic clock."""

    profile: str
    contract: Contract
    prompt_tokens: int
    max_tokens: int
    arrived_s: float
    meter: AttainmentMeter
    token_times_s: list[float] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def complete(self) -> bool:
        return len(self.token_times_s) == self.max_tokens

    @property
    def kept(self) -> bool:
        return self.complete and self.meter.attainment().kept

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.token_times_s)]


class EngineDriver:
    """Gives requests to a started engine and listens."""

    def __init__(self, engine: VllmEngine, facts: EngineFacts) -> None:
        self.engine = engine
        self.facts = facts
        self.rows: list[Row] = []
        """Steps and their durations."""
        self._live: dict[str, Tracked] = {}
        self._watchers: list[Callable[[EngineStep, float], None]] = []
        self._numbers = itertools.count(1)

    async def listen(self) -> None:
        async for event in self.engine.events():
            if isinstance(event, RequestRejected):
                raise RuntimeError(f"the engine refused {event.request_id}: {event.detail}")
            if isinstance(event, EngineStep):
                self._step(event, time.monotonic())

    def watch(self, watcher: Callable[[EngineStep, float], None]) -> None:
        """To be told of every step that computes something, and when it was heard of."""
        self._watchers.append(watcher)

    def _step(self, step: EngineStep, now_s: float) -> None:
        if step.shape.tokens:
            self.rows.append((step.shape, step.duration_s))
            for watcher in self._watchers:
                watcher(step, now_s)
        for output in step.outputs:
            tracked = self._live.get(output.request_id)
            if tracked is None:
                continue
            tracked.meter.note_tokens(len(output.token_ids), now_s)
            tracked.token_times_s += [now_s] * len(output.token_ids)
            if output.finish_reason is not None:
                del self._live[output.request_id]
                tracked.ended.set()

    async def submit(
        self, profile: str, token_ids: tuple[int, ...], sampling: SamplingOptions, contract: Contract
    ) -> Tracked:
        """
        Args:
            contract: resolved; its promises are given to the engine whether it heeds them or not.
        """
        now_s = time.monotonic()
        request_id = f"{profile}-{next(self._numbers)}"
        meter = AttainmentMeter(contract, now_s)
        tracked = Tracked(profile, contract, len(token_ids), sampling.max_tokens, now_s, meter)
        self._live[request_id] = tracked
        request = EngineRequest(
            request_id,
            token_ids,
            0,
            sampling,
            deadline_in_s=None if contract.prefill is None else contract.prefill.ttft_s,
            tpot_s=contract.tightest_tpot_s,
            best_effort=not contract.promises_anything,
            application=profile,
        )
        await self.engine.submit(request)
        return tracked

    async def abandon(self) -> None:
        """Abort what still runs and wait until it is gone."""
        left = dict(self._live)
        for request_id in left:
            await self.engine.abort(request_id)
        await asyncio.gather(*(tracked.ended.wait() for tracked in left.values()))


@contextmanager
def kept_off(core: int) -> Iterator[None]:
    """Leave a core to the engine: this process runs on the others, if there are any."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, all_cores - {core} or all_cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


@asynccontextmanager
async def driven(config: VllmEngineConfig) -> AsyncIterator[EngineDriver]:
    """An engine with SmolLM2 that has warmed up."""
    model = locate_model(load_settings(None).model, weights=True)
    engine = VllmEngine(model.path, config, "bench-engine")
    driver = EngineDriver(engine, await engine.start())
    listening = asyncio.create_task(driver.listen())
    try:
        yield driver
    finally:
        await engine.shutdown()
        await listening
