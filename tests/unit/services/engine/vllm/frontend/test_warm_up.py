"""The first steps of an engine, which tell how fast the machine is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.engine.protocol import (
    EngineEvent,
    EngineFacts,
    EngineLoad,
    EngineRequest,
    EngineStep,
    FinishReason,
    RequestOutput,
    RequestRejected,
)
from services.engine.vllm.frontend.warm_up import OUTPUT_TOKENS, SHARES_OF_A_STEP, WarmUpError, warm_up
from services.slo.performance import PerformanceModel, StepShape
from tests.unit.services.engine.vllm.frontend.test_engine import FACTS

LOAD = EngineLoad(1, 0, 64, 4, 0)


class MeasuredEngine:
    """An engine whose prompts take `per_token_s` a token, but for the very first, which takes a minute."""

    def __init__(self, per_token_s: float, refusal: str = "", dies: bool = False) -> None:
        self.requests: list[EngineRequest] = []
        self._per_token_s = per_token_s
        self._refusal = refusal
        self._dies = dies
        self._steps = 0

    async def submit(self, request: EngineRequest) -> None:
        self.requests.append(request)

    async def events(self) -> AsyncIterator[EngineEvent]:
        request = self.requests[-1]
        if self._refusal:
            yield RequestRejected(request.request_id, True, self._refusal)
        if self._dies:
            return
        tokens = len(request.token_ids)
        prompt_s = 60.0 if len(self.requests) == 1 else 0.01 + self._per_token_s * tokens
        yield self._step(StepShape(1, tokens, tokens * tokens / 2), prompt_s, RequestOutput(request.request_id, (1,)))
        for number in range(1, OUTPUT_TOKENS):
            last = FinishReason.LENGTH if number == OUTPUT_TOKENS - 1 else None
            shape = StepShape(decode_requests=1, decode_tokens=1, decode_context_tokens=tokens + number)
            yield self._step(shape, 0.01, RequestOutput(request.request_id, (1,), finish_reason=last))

    def _step(self, shape: StepShape, duration_s: float, output: RequestOutput) -> EngineStep:
        self._steps += 1
        return EngineStep(self._steps, duration_s, shape, (output,), LOAD)


async def warmed(engine: MeasuredEngine, facts: EngineFacts = FACTS) -> EngineFacts:
    return await warm_up(engine, facts)  # type: ignore[arg-type]


async def test_step_times_are_those_of_this_machine_without_its_first_prompt() -> None:
    for per_token_s in (0.0002, 0.002):
        facts = await warmed(MeasuredEngine(per_token_s))
        model = PerformanceModel(facts.performance)
        expected_s = 0.01 + per_token_s * 512
        assert model.step_s(StepShape(1, 512, 512 * 256)) == pytest.approx(expected_s, rel=0.15)
        assert replace(facts, performance=FACTS.performance) == FACTS


async def test_prompts_are_shares_of_the_largest_step_and_have_nothing_in_common() -> None:
    engine = MeasuredEngine(0.001)
    await warmed(engine)
    assert [len(request.token_ids) for request in engine.requests] == [int(share * 512) for share in SHARES_OF_A_STEP]
    assert len({request.token_ids[0] for request in engine.requests}) == len(engine.requests)
    assert all(0 <= token < 1000 for request in engine.requests for token in request.token_ids)
    assert all(request.sampling.ignore_eos for request in engine.requests)


async def test_prompts_leave_room_for_output() -> None:
    engine = MeasuredEngine(0.001)
    await warmed(engine, replace(FACTS, max_context_tokens=100))
    assert max(len(request.token_ids) for request in engine.requests) == 100 - OUTPUT_TOKENS


async def test_an_engine_that_refuses_or_ends_is_not_warm() -> None:
    with pytest.raises(WarmUpError, match="no such model"):
        await warmed(MeasuredEngine(0.001, refusal="no such model"))
    with pytest.raises(WarmUpError, match="the engine ended"):
        await warmed(MeasuredEngine(0.001, dies=True))
