"""The first steps of an engine: they pay for first-time work, and tell how fast this machine is."""

from __future__ import annotations

from dataclasses import replace

from services.engine.protocol import Engine, EngineFacts, EngineRequest, EngineStep, RequestRejected, SamplingOptions
from services.slo.fitting import fit_all
from services.slo.performance import StepShape
from services.slo.regression import credible

SHARES_OF_A_STEP = (0.1, 1.0, 0.25, 0.1)
"""Lengths of the prompts, as shares of the largest step; the first of them pays for what is done once. Only one is as
long as a step: it takes seconds on a CPU, but without it nothing shows what a whole step costs."""
OUTPUT_TOKENS = 6


class WarmUpError(Exception):
    """The engine did not take, or did not finish, the simplest of requests."""


async def warm_up(engine: Engine, facts: EngineFacts) -> EngineFacts:
    """Run a few prompts to their end, before anybody waits for them.

    Returns:
        The facts with performance coefficients corrected by these steps.

    Raises:
        WarmUpError: see there.
        EngineDeadError: the engine died.
    """
    rows: list[tuple[StepShape, float]] = []
    longest = min(facts.max_step_tokens, facts.max_context_tokens - OUTPUT_TOKENS)
    for number, share in enumerate(SHARES_OF_A_STEP):
        tokens = max(1, int(share * longest))
        # Different beginnings, so that nothing is found in the prefix cache.
        prompt = tuple((number + 1 + 7 * position) % facts.vocabulary_size for position in range(tokens))
        sampling = SamplingOptions(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
        await engine.submit(EngineRequest(f"warm-up-{number}", prompt, 0, sampling))
        steps = await _steps_until_done(engine)
        rows += [(step.shape, step.duration_s) for step in steps if number > 0 and credible(step.duration_s)]
    # A machine may be several times slower at prompts than the one that the prior was measured on.
    return replace(facts, performance=fit_all(facts.performance, rows, outliers=False))


async def _steps_until_done(engine: Engine) -> list[EngineStep]:
    """Return the steps until the only request there is has ended."""
    steps = []
    async for event in engine.events():
        if isinstance(event, RequestRejected):
            raise WarmUpError(event.detail)
        if isinstance(event, EngineStep):
            steps.append(event)
            if any(output.finish_reason is not None for output in event.outputs):
                return steps
    raise WarmUpError("the engine ended")
