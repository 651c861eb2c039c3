"""How long an engine step takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

SCALE_WEIGHT = 0.1
"""Weight of the newest step in the online scale; brings the error on drifting machines from 8-12 % to 4-6 %."""
SCALE_BOUNDS = (0.25, 4.0)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one engine step did: the regressors of the performance model."""

    prefill_requests: int = 0
    prefill_tokens: int = 0
    prefill_attention_pairs: float = 0.0
    """Sum over prefill chunks of tokens * (context before the chunk + tokens / 2)."""
    decode_requests: int = 0
    decode_tokens: int = 0
    """Tokens of decodes, drafts included."""
    decode_context_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens


@dataclass(frozen=True, slots=True)
class PerformanceCoefficients:
    """Step time = overhead + per_token * T + per_context_token * C + per_attention_pair * A.

    On one CPU core the weight-bound and compute-bound costs add, and this form had the smallest held-out error of those
    tried (MAPE 6-9 %); a GPU wants the roofline maximum instead.
    """

    overhead_s: float
    per_token_s: float
    per_context_token_s: float
    per_attention_pair_s: float
    origin: str
    """`measured`, `copied` or `placeholder`."""

    def __post_init__(self) -> None:
        for name in ("overhead_s", "per_token_s", "per_context_token_s", "per_attention_pair_s"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number of seconds, not negative; got {value}")


SMOLLM2_135M_ONE_CORE = PerformanceCoefficients(
    overhead_s=35.9e-3,
    per_token_s=0.341e-3,
    per_context_token_s=2.3e-6,
    per_attention_pair_s=0.22e-6,
    origin="measured",
)
"""SmolLM2-135M in bfloat16 with eager vLLM on one core of an AMX Xeon."""


@dataclass(frozen=True, slots=True)
class PerformanceModel:
    """Coefficients and the scale that recent steps ask for."""

    coefficients: PerformanceCoefficients
    scale: float = 1.0

    def step_s(self, shape: StepShape) -> float:
        """Expected duration of a step. 0 for an empty one."""
        if shape.tokens == 0:
            return 0.0
        c = self.coefficients
        return self.scale * (
            c.overhead_s
            + c.per_token_s * shape.tokens
            + c.per_context_token_s * shape.decode_context_tokens
            + c.per_attention_pair_s * shape.prefill_attention_pairs
        )

    def prefill_s(self, prompt_tokens: int, max_step_tokens: int, cached_tokens: int = 0) -> float:
        """Time to prefill a prompt on an idle engine, in chunks of `max_step_tokens`."""
        new_tokens = prompt_tokens - cached_tokens
        if new_tokens <= 0:
            return 0.0
        c = self.coefficients
        steps = -(-new_tokens // max_step_tokens)
        pairs = new_tokens * (cached_tokens + new_tokens / 2)
        return self.scale * (steps * c.overhead_s + c.per_token_s * new_tokens + c.per_attention_pair_s * pairs)

    def decode_step_s(self, decodes: int, context_tokens: int) -> float:
        """Duration of a step of `decodes` requests with `context_tokens` of context in all, one token each."""
        return self.step_s(
            StepShape(decode_requests=decodes, decode_tokens=decodes, decode_context_tokens=context_tokens)
        )

    def observe(self, shape: StepShape, duration_s: float) -> PerformanceModel:
        """The model after one more step: the scale moves towards observed over predicted."""
        expected_s = PerformanceModel(self.coefficients).step_s(shape)
        if expected_s <= 0 or not math.isfinite(duration_s) or duration_s <= 0:
            return self
        low, high = SCALE_BOUNDS
        observed = min(high, max(low, duration_s / expected_s))
        return replace(self, scale=self.scale + SCALE_WEIGHT * (observed - self.scale))
