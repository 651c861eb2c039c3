"""Steps of a made-up worker, with noise that the fit does not know."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from services.slo.fit_quality import Row
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepRegime, StepShape

NOISE_BY_REGIME = {StepRegime.DECODE: 0.03, StepRegime.MIXED: 0.08, StepRegime.PREFILL: 0.15}


def random_shape(rng: random.Random) -> StepShape:
    decodes = rng.randint(1, 128)
    context = sum(rng.randint(50, 3000) for _ in range(decodes))
    if rng.random() < 0.6:
        return StepShape(decode_requests=decodes, decode_tokens=decodes, decode_context_tokens=context)
    tokens = round(math.exp(rng.uniform(math.log(16), math.log(2048))))
    before = rng.choice([0, 0, rng.randint(0, 4000)])
    if rng.random() < 0.4:
        decodes = context = 0
    return StepShape(1, tokens, tokens * (before + tokens / 2), decodes, decodes, context)


def rows(
    truth: PerformanceCoefficients,
    count: int,
    seed: int,
    *,
    outliers: float = 0.0,
    correlation: float = 0.0,
    factor: Callable[[int], float] = lambda _: 1.0,
) -> Iterator[Row]:
    """Steps and their durations.

    Args:
        outliers: share of steps that take 2 to 10 times as long.
        correlation: of the noise of a step with that of the one before.
        factor: multiplies the duration of step i: what else the machine does.
    """
    rng = random.Random(seed)
    model = PerformanceModel(truth)
    noise = 0.0
    for index in range(count):
        shape = random_shape(rng)
        noise = correlation * noise + math.sqrt(1 - correlation**2) * rng.gauss(0.0, 1.0)
        duration_s = model.step_s(shape) * factor(index) * math.exp(NOISE_BY_REGIME[shape.regime] * noise)
        yield shape, duration_s * (rng.uniform(2.0, 10.0) if rng.random() < outliers else 1.0)
