"""How long an engine step takes."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


class StepRegime(enum.IntEnum):
    """Kinds of steps whose prediction errors differ. The values are indices."""

    DECODE = 0
    MIXED = 1
    PREFILL = 2


REGIMES = len(StepRegime)


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
    draft_steps: int = 0
    """Sequential runs of the draft model: the longest draft of the step."""

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens

    @property
    def requests(self) -> int:
        return self.prefill_requests + self.decode_requests

    @property
    def regime(self) -> StepRegime:
        if not self.prefill_tokens:
            return StepRegime.DECODE
        return StepRegime.MIXED if self.decode_tokens else StepRegime.PREFILL

    def regressors(self) -> tuple[float, ...]:
        """In the order of `StepCost.vector`."""
        return (
            1.0,
            float(self.tokens),
            float(self.requests),
            float(self.decode_context_tokens),
            float(self.prefill_attention_pairs),
            float(self.draft_steps),
        )


def _check_seconds(base: str, values_s: Sequence[float]) -> None:
    """The terms of a cost, in the order of `StepCost.vector`; the first goes by the name of `base`."""
    # An engine makes a model of every step, out of cold memory: one look suffices where nothing is wrong.
    if min(values_s) >= 0.0 and sum(values_s) < math.inf:
        return
    for term, value_s in enumerate(values_s):
        if not 0.0 <= value_s < math.inf:
            name = (base, *_OTHER_TERMS)[term]
            raise ValueError(f"{name} must be a finite number of seconds, not negative; got {value_s}")


_OTHER_TERMS = (
    "per_token_s",
    "per_request_s",
    "per_context_token_s",
    "per_attention_pair_s",
    "per_draft_step_s",
)


@dataclass(frozen=True, slots=True)
class StepCost:
    """A cost that is linear in the regressors of a step. Seconds."""

    base_s: float = 0.0
    per_token_s: float = 0.0
    per_request_s: float = 0.0
    per_context_token_s: float = 0.0
    per_attention_pair_s: float = 0.0
    per_draft_step_s: float = 0.0

    def __post_init__(self) -> None:
        _check_seconds("base_s", self.vector())

    def scaled(self, factor: float) -> StepCost:
        """The same cost on a machine that takes `factor` times as long."""
        return StepCost(*(factor * cost_s for cost_s in self.vector()))

    def vector(self) -> tuple[float, ...]:
        return (
            self.base_s,
            self.per_token_s,
            self.per_request_s,
            self.per_context_token_s,
            self.per_attention_pair_s,
            self.per_draft_step_s,
        )


NO_COST = StepCost()
TERMS = 6
"""Length of `StepCost.vector`."""
VECTOR_LENGTH = 2 * TERMS + REGIMES


class StepForm(enum.Enum):
    """How the costs of a step combine."""

    ADDITIVE = "additive"
    """Step time = overhead + the sum of the terms. Best on a CPU core, where costs of weights and of arithmetic add."""
    ROOFLINE = "roofline"
    """Step time = the larger of the compute cost and the memory cost. What is paid in either case, such as the time to
    launch a step, is part of both."""


@dataclass(frozen=True, slots=True)
class PerformanceCoefficients:
    """Step time = overhead + per_token * T + per_request * R + per_context_token * C + per_attention_pair * A
    + per_draft_step * D; in roofline form that or `memory`, whichever is larger.

    T tokens and R requests of the step, C context of its decodes, A and D as in `StepShape`.
    """

    overhead_s: float
    per_token_s: float
    per_context_token_s: float
    per_attention_pair_s: float
    origin: str
    """`measured` here, `fitted` by others, `copied` from another model, or `placeholder`."""
    per_request_s: float = 0.0
    per_draft_step_s: float = 0.0
    form: StepForm = StepForm.ADDITIVE
    memory: StepCost = NO_COST
    """Cost of moving weights and KV caches; roofline form only."""

    def __post_init__(self) -> None:
        _check_seconds("overhead_s", self._compute_vector())
        if self.form is StepForm.ADDITIVE and self.memory != NO_COST:
            raise ValueError("memory must be absent in additive form")

    @property
    def compute(self) -> StepCost:
        """All but `memory`."""
        return StepCost(*self._compute_vector())

    def vector(self) -> tuple[float, ...]:
        """The terms of the compute cost, then those of the memory cost."""
        return (*self._compute_vector(), *self.memory.vector())

    def _compute_vector(self) -> tuple[float, ...]:
        return (
            self.overhead_s,
            self.per_token_s,
            self.per_request_s,
            self.per_context_token_s,
            self.per_attention_pair_s,
            self.per_draft_step_s,
        )

    def with_costs(self, compute: StepCost, memory: StepCost) -> PerformanceCoefficients:
        """The same form and origin with other figures."""
        return PerformanceCoefficients(
            overhead_s=compute.base_s,
            per_token_s=compute.per_token_s,
            per_context_token_s=compute.per_context_token_s,
            per_attention_pair_s=compute.per_attention_pair_s,
            origin=self.origin,
            per_request_s=compute.per_request_s,
            per_draft_step_s=compute.per_draft_step_s,
            form=self.form,
            memory=memory,
        )


SMOLLM2_135M_ONE_CORE = PerformanceCoefficients(
    overhead_s=38.5e-3,
    per_token_s=0.331e-3,
    per_context_token_s=2.6e-6,
    per_attention_pair_s=0.187e-6,
    origin="measured",
    per_request_s=0.088e-3,
)
"""SmolLM2-135M in bfloat16 with eager vLLM on one core of an AMX Xeon, by `benchmarks/step_times.py`: 1,848 steps of 38
to 335 ms; fitted to the first half it is off by 2.1 % in the second."""


def step_time_s(
    c: Sequence[float] | NDArray[np.float64],
    tokens: float,
    requests: float,
    context_tokens: float,
    attention_pairs: float,
    draft_steps: float,
    regime: int,
) -> float:
    """The one formula of the step time, in a form that numba compiles as it stands.

    Args:
        c: `PerformanceModel.vector`, or the same as `PerformanceModel.array()` for compiled code: the six terms of the
            compute cost, the six of the memory cost (zeros in additive form), and a factor for each `StepRegime`.
        context_tokens: of decodes.
        attention_pairs: of prefill chunks.
        regime: a `StepRegime`.
    """
    compute_s = (
        c[0] + c[1] * tokens + c[2] * requests + c[3] * context_tokens + c[4] * attention_pairs + c[5] * draft_steps
    )
    memory_s = (
        c[6] + c[7] * tokens + c[8] * requests + c[9] * context_tokens + c[10] * attention_pairs + c[11] * draft_steps
    )
    return float(max(compute_s, memory_s) * c[12 + regime])


@dataclass(frozen=True, slots=True)
class PerformanceModel:
    """Predicts step times: expected ones, or bounds if made by `StepTimeFit.bound`."""

    coefficients: PerformanceCoefficients
    scale: float = 1.0
    """Multiplies every step time: the machine of today against that of the coefficients."""
    margins: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Multiplies further, by `StepRegime`; above 1 in an upper bound."""
    vector: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """See `step_time_s`; scale and margins are included."""

    def __post_init__(self) -> None:
        scale = self.scale
        costs = [scale * cost_s for cost_s in self.coefficients.vector()]
        object.__setattr__(self, "vector", (*costs, *self.margins))

    def array(self) -> NDArray[np.float64]:
        """The whole model as one flat array, for compiled code: see `step_time_s`."""
        return np.array(self.vector, dtype=np.float64)

    def step_s(self, shape: StepShape) -> float:
        """Duration of a step. 0 for an empty one."""
        if shape.tokens == 0:
            return 0.0
        return step_time_s(
            self.vector,
            shape.tokens,
            shape.requests,
            shape.decode_context_tokens,
            shape.prefill_attention_pairs,
            shape.draft_steps,
            shape.regime,
        )

    def prefill_s(self, prompt_tokens: int, max_step_tokens: int, cached_tokens: int = 0) -> float:
        """Time to prefill a prompt on an idle engine, in chunks of `max_step_tokens`."""
        duration_s = 0.0
        for context in range(cached_tokens, prompt_tokens, max_step_tokens):
            tokens = min(max_step_tokens, prompt_tokens - context)
            duration_s += self._prefill_step_s(tokens, 1, tokens * (context + tokens / 2))
        return duration_s

    def prefill_batch_s(self, requests: int, tokens: int, attention_pairs: float, max_step_tokens: int) -> float:
        """Time to prefill several prompts that fill as many steps of `max_step_tokens` as they need, evenly."""
        steps = -(-tokens // max_step_tokens)
        if steps <= 0:
            return 0.0
        return steps * self._prefill_step_s(tokens / steps, requests, attention_pairs / steps)

    def decode_step_s(self, decodes: int, context_tokens: int) -> float:
        """Duration of a step of `decodes` requests with `context_tokens` of context in all, one token each."""
        if decodes == 0:
            return 0.0
        return step_time_s(self.vector, decodes, decodes, context_tokens, 0.0, 0.0, StepRegime.DECODE)

    def _prefill_step_s(self, tokens: float, requests: int, attention_pairs: float) -> float:
        return step_time_s(self.vector, tokens, requests, 0.0, attention_pairs, 0.0, StepRegime.PREFILL)
