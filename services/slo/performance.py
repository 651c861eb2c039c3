"""The performance model: how long an engine step takes (docs/explanation/planning-mathematics.md, section 2)."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


class StepRegime(enum.IntEnum):
    """Kinds of steps, whose prediction errors differ; the values are indices."""

    DECODE = 0
    MIXED = 1
    PREFILL = 2


REGIMES = len(StepRegime)
"""Number of regimes."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The content of one engine step, in the terms of the performance model."""

    prefill_requests: int = 0
    """Number of prefill chunks."""
    prefill_tokens: int = 0
    """Number of prompt tokens that the step computes."""
    prefill_attention_pairs: float = 0.0
    """Number of pairs of tokens between which prefills compute attention: the sum over chunks of tokens * (context
    before the chunk + tokens / 2)."""
    decode_requests: int = 0
    """Number of decodes."""
    decode_tokens: int = 0
    """Number of tokens of decodes, drafts included."""
    decode_context_tokens: int = 0
    """Context tokens of the decodes together, which the step reads from the KV cache."""
    draft_steps: int = 0
    """Number of runs of the draft model one after the other, which is the longest draft of the step."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the step computes."""
        return self.prefill_tokens + self.decode_tokens

    @property
    def requests(self) -> int:
        """Number of requests in the step."""
        return self.prefill_requests + self.decode_requests

    @property
    def regime(self) -> StepRegime:
        """Kind of the step."""
        if not self.prefill_tokens:
            return StepRegime.DECODE
        return StepRegime.MIXED if self.decode_tokens else StepRegime.PREFILL

    def regressors(self) -> tuple[float, ...]:
        """Return the quantities that the costs of `StepCost.vector` multiply, in its order."""
        return (
            1.0,
            float(self.tokens),
            float(self.requests),
            float(self.decode_context_tokens),
            float(self.prefill_attention_pairs),
            float(self.draft_steps),
        )


def _check_seconds(base: str, values_s: Sequence[float]) -> None:
    """Check the terms of a cost.

    Args:
        base: name of the first term.
        values_s: terms in the order of `StepCost.vector`.

    Raises:
        ValueError: a term is negative or not finite.
    """
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
    """A cost in seconds that is linear in the content of a step.

    Raises:
        ValueError: a term is negative or not finite.
    """

    base_s: float = 0.0
    """Cost of any step."""
    per_token_s: float = 0.0
    """Cost of each token."""
    per_request_s: float = 0.0
    """Cost of each request."""
    per_context_token_s: float = 0.0
    """Cost of each context token of a decode."""
    per_attention_pair_s: float = 0.0
    """Cost of each attention pair of a prefill chunk."""
    per_draft_step_s: float = 0.0
    """Cost of each run of the draft model."""

    def __post_init__(self) -> None:
        _check_seconds("base_s", self.vector())

    def scaled(self, factor: float) -> StepCost:
        """Return the cost on a machine that takes `factor` times as long."""
        return StepCost(*(factor * cost_s for cost_s in self.vector()))

    def vector(self) -> tuple[float, ...]:
        """Return the six terms, in the order in which they are declared."""
        return (
            self.base_s,
            self.per_token_s,
            self.per_request_s,
            self.per_context_token_s,
            self.per_attention_pair_s,
            self.per_draft_step_s,
        )


NO_COST = StepCost()
"""A cost of nothing."""
TERMS = 6
"""Number of terms of a cost: the length of `StepCost.vector`."""
VECTOR_LENGTH = 2 * TERMS + REGIMES
"""Length of `PerformanceModel.vector`."""


class StepForm(enum.Enum):
    """Ways in which the costs of a step combine to its time."""

    ADDITIVE = "additive"
    """The step time is the sum of all terms: best on a CPU core, where moving weights and arithmetic add up."""
    ROOFLINE = "roofline"
    """The step time is the larger of the compute cost and the memory cost: best on a GPU, where they overlap. What is
    paid in either case, such as the time to launch a step, is part of both."""


@dataclass(frozen=True, slots=True)
class PerformanceCoefficients:
    """The coefficients of a step-time formula, in seconds.

    The compute cost is overhead + per_token * T + per_request * R + per_context_token * C + per_attention_pair * A +
    per_draft_step * D, for T tokens, R requests, C context tokens of decodes, A attention pairs and D draft steps as in
    `StepShape`. It is the step time in additive form; in roofline form the step time is the larger of it and `memory`.

    Raises:
        ValueError: a coefficient is negative or not finite, or `memory` is given in additive form.
    """

    overhead_s: float
    """Cost of any step."""
    per_token_s: float
    """Cost of each token."""
    per_context_token_s: float
    """Cost of each context token of a decode."""
    per_attention_pair_s: float
    """Cost of each attention pair of a prefill chunk."""
    origin: str
    """Source of the figures: `measured` here, `fitted` by others, `copied` from another model, or `placeholder`."""
    per_request_s: float = 0.0
    """Cost of each request."""
    per_draft_step_s: float = 0.0
    """Cost of each run of the draft model."""
    form: StepForm = StepForm.ADDITIVE
    """Way in which compute and memory cost combine."""
    memory: StepCost = NO_COST
    """Cost of moving weights and KV caches; nothing in additive form."""

    def __post_init__(self) -> None:
        _check_seconds("overhead_s", self._compute_vector())
        if self.form is StepForm.ADDITIVE and self.memory != NO_COST:
            raise ValueError("memory must be absent in additive form")

    @property
    def compute(self) -> StepCost:
        """Compute cost: every coefficient but `memory`."""
        return StepCost(*self._compute_vector())

    def vector(self) -> tuple[float, ...]:
        """Return the terms of the compute cost, then those of the memory cost."""
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
        """Return coefficients of the same form and origin with other costs."""
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
"""Coefficients of SmolLM2-135M in bfloat16 with eager vLLM on one core of an AMX Xeon, measured with
`benchmarks/step_times.py`: 1,848 steps of 38 to 335 ms; fitted to the first half they are off by 2.1 % in the
second."""


def step_time_s(
    c: Sequence[float] | NDArray[np.float64],
    tokens: float,
    requests: float,
    context_tokens: float,
    attention_pairs: float,
    draft_steps: float,
    regime: int,
) -> float:
    """Return the time of a step in seconds: the one formula, in a form that numba compiles as it stands.

    Args:
        c: `PerformanceModel.vector`, or the same as `PerformanceModel.array()` for compiled code, of shape (15,): the
            six terms of the compute cost, the six of the memory cost (zeros in additive form), and a factor for each
            `StepRegime`.
        tokens: tokens of the step.
        requests: requests of the step.
        context_tokens: context tokens of its decodes together.
        attention_pairs: attention pairs of its prefill chunks, as in `StepShape`.
        draft_steps: runs of the draft model one after the other.
        regime: a `StepRegime`, the index of a margin.
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
    """Predicts step times: expected ones, or upper bounds if made by `StepTimeFit.bound`."""

    coefficients: PerformanceCoefficients
    """Coefficients of the step-time formula."""
    scale: float = 1.0
    """Factor on every step time: the machine of today against that of the coefficients."""
    margins: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Further factors by `StepRegime`; above 1 in an upper bound."""
    vector: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """Whole model as the flat figures that `step_time_s` takes, scale and margins included."""

    def __post_init__(self) -> None:
        scale = self.scale
        costs = [scale * cost_s for cost_s in self.coefficients.vector()]
        object.__setattr__(self, "vector", (*costs, *self.margins))

    def array(self) -> NDArray[np.float64]:
        """Return the whole model as a flat array of shape (15,), for compiled code; see `step_time_s`."""
        return np.array(self.vector, dtype=np.float64)

    def step_s(self, shape: StepShape) -> float:
        """Return the time of a step in seconds; 0 for an empty one."""
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
        """Return the time in which an idle engine prefills a prompt, in chunks of at most `max_step_tokens`.

        Args:
            cached_tokens: tokens at the beginning of the prompt that are not computed.
        """
        duration_s = 0.0
        for context in range(cached_tokens, prompt_tokens, max_step_tokens):
            tokens = min(max_step_tokens, prompt_tokens - context)
            duration_s += self._prefill_step_s(tokens, 1, tokens * (context + tokens / 2))
        return duration_s

    def prefill_batch_s(self, requests: int, tokens: int, attention_pairs: float, max_step_tokens: int) -> float:
        """Return the time to prefill several prompts together.

        They are spread evenly over as few steps of at most `max_step_tokens` as they need.

        Args:
            attention_pairs: of all prompts, as in `StepShape`.
        """
        steps = -(-tokens // max_step_tokens)
        if steps <= 0:
            return 0.0
        return steps * self._prefill_step_s(tokens / steps, requests, attention_pairs / steps)

    def decode_step_s(self, decodes: int, context_tokens: int) -> float:
        """Return the time of a step of `decodes` requests, one token each, whose contexts have `context_tokens`
        together.
        """
        if decodes == 0:
            return 0.0
        return step_time_s(self.vector, decodes, decodes, context_tokens, 0.0, 0.0, StepRegime.DECODE)

    def _prefill_step_s(self, tokens: float, requests: int, attention_pairs: float) -> float:
        return step_time_s(self.vector, tokens, requests, 0.0, attention_pairs, 0.0, StepRegime.PREFILL)
