"""Driving engines from tests: one event loop in a thread of its own, every event kept."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import (
    EngineDeadError,
    EngineFacts,
    EngineRequest,
    EngineStep,
    FinishReason,
    LeaseClosed,
    RequestOutput,
    RequestRejected,
    RequestTimings,
    SamplingOptions,
)
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.engine import VllmEngine
from tests.support.eventually import wait_until

T = TypeVar("T")
PATIENCE_S = 120.0
START_PATIENCE_S = 500.0
"""Seconds that an engine may take to start: on an idle machine 20, beside other work many times that."""
_numbers = itertools.count(1)


class LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = PATIENCE_S) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Answer:
    """All that became of one request."""

    outputs: list[RequestOutput] = field(default_factory=list)
    rejected: RequestRejected | None = None
    prefilled: list[int] = field(default_factory=list)
    """What was computed of the prompt after each step that computed a part of it."""

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for output in self.outputs for token in output.token_ids)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason if self.outputs else None

    @property
    def ended(self) -> bool:
        return self.rejected is not None or self.finish_reason is not None

    @property
    def timings(self) -> RequestTimings:
        timings = self.outputs[0].timings
        assert timings is not None
        return timings

    @property
    def kv(self) -> KvHandle:
        handle = self.outputs[-1].kv
        assert handle is not None
        return handle


class EngineHarness:
    """An engine and everything it said."""

    def __init__(self, loop: LoopThread, model_dir: Path, config: VllmEngineConfig, worker_id: str) -> None:
        self._loop = loop
        self.engine = VllmEngine(model_dir, config, worker_id)
        self.answers: dict[str, Answer] = {}
        self.steps: list[EngineStep] = []
        self.leases: dict[str, LeaseOutcome] = {}
        self.died: EngineDeadError | None = None
        self.facts: EngineFacts = loop.run(self.engine.start(), START_PATIENCE_S)
        loop.start(self._listen())

    async def _listen(self) -> None:
        try:
            async for event in self.engine.events():
                match event:
                    case EngineStep():
                        self.steps.append(event)
                        for output in event.outputs:
                            answer = self.answers[output.request_id]
                            if output.prefilled_tokens:
                                answer.prefilled.append(output.prefilled_tokens)
                            else:
                                answer.outputs.append(output)
                    case RequestRejected():
                        self.answers[event.request_id].rejected = event
                    case LeaseClosed():
                        assert event.lease_id not in self.leases
                        self.leases[event.lease_id] = event.outcome
        except EngineDeadError as error:
            self.died = error

    def submit(self, token_ids: Sequence[int], sampling: SamplingOptions, **more: Any) -> str:
        request_id: str = more.pop("request_id", f"request-{next(_numbers)}")
        generated = more.pop("generated_tokens", 0)
        self.answers.setdefault(request_id, Answer())
        request = EngineRequest(request_id, tuple(token_ids), generated, sampling, **more)
        self._loop.run(self.engine.submit(request))
        return request_id

    def wait(self, request_id: str) -> Answer:
        answer = self.answers[request_id]
        wait_until(lambda: answer.ended or self.died is not None, f"end of {request_id}")
        assert self.died is None, self.died
        return answer

    def generate(self, token_ids: Sequence[int], sampling: SamplingOptions, **more: Any) -> Answer:
        return self.wait(self.submit(token_ids, sampling, **more))

    def abort(self, request_id: str) -> None:
        self._loop.run(self.engine.abort(request_id))

    def release_kv(self, lease_id: str) -> None:
        self._loop.run(self.engine.release_kv(lease_id))

    def scheduling_figures(self) -> dict[str, float]:
        return self._loop.run(self.engine.scheduling_figures())

    def wait_free(self, patience_s: float = 10.0) -> None:
        """Wait until no block is held and nothing runs."""

        def free() -> bool:
            load = self.engine.load()
            return load.kv_blocks_used == load.kv_blocks_leased == load.running_requests == load.waiting_requests == 0

        wait_until(free, f"an empty engine: {self.engine.load()}", patience_s)

    def core_pids(self) -> list[int]:
        launched = self.engine._launched
        assert launched is not None
        return [process.pid for process in launched.processes]

    def shutdown(self) -> None:
        self._loop.run(self.engine.shutdown())


def greedy(max_tokens: int, **more: Any) -> SamplingOptions:
    return SamplingOptions(max_tokens=max_tokens, temperature=0.0, **more)


@dataclass
class Pair:
    """A prefill engine and a decode engine, used as the router uses them."""

    prefill: EngineHarness
    decode: EngineHarness

    def export(self, prompt: Sequence[int], sampling: SamplingOptions) -> Answer:
        answer = self.prefill.generate(prompt, sampling, export_kv=True)
        assert answer.finish_reason is FinishReason.LENGTH, answer
        return answer

    def continue_with(
        self, prompt: Sequence[int], first: Sequence[int], sampling: SamplingOptions, kv: KvHandle | None
    ) -> Answer:
        return self.decode.generate([*prompt, *first], sampling, generated_tokens=len(first), kv_source=kv)

    def hand_over(self, prompt: Sequence[int], sampling: SamplingOptions) -> tuple[tuple[int, ...], Answer]:
        """All tokens of the output, and the decode engine's part of the answer."""
        first = self.export(prompt, sampling)
        rest = self.continue_with(prompt, first.tokens, sampling, first.kv)
        if rest.timings.kv_recompute_reason:
            # Nobody pulled: the blocks would stay leased, beside those of the next test on the same engine.
            self.prefill.release_kv(first.kv.lease_id)
        return first.tokens + rest.tokens, rest
