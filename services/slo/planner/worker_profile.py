"""How fast a worker steps, as the planner needs it: an upper bound of the step time, and the rates it must keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from services.slo.performance import TERMS, PerformanceModel, StepRegime
from services.slo.planner.kernels.compiled import Floats
from services.slo.planner.kernels.step_table import build_step_table

MAX_TIERS = 8
"""Most tiers of a round. Chosen: step tables and schedules grow with them, and requests merge into few tiers."""
MAX_DRAFT = 16
"""Most draft tokens in a step of a request. Chosen: step tables grow with them, and far fewer are ever accepted."""
_LEAST_S = 1e-9
"""Seconds that a token costs at least, to divide by."""


@dataclass(frozen=True)
class StepBound:
    """Upper bound of a step's duration, in seconds:

    overhead + per_draft_step * draft steps + max(work + per_context_token * C, memory + memory_per_work * work
    + memory_per_context_token * C), where work = per_token * tokens + per_request * requests + per_attention_pair * A;
    C and A as in `StepShape`.

    The roofline form leaves `per_context_token_s` at 0, the additive form the two memory terms.
    """

    overhead_s: float
    """Seconds that every step takes."""
    per_token_s: float
    """Seconds of computing for a token."""
    per_request_s: float = 0.0
    """Seconds of computing for a request in the step."""
    per_context_token_s: float = 0.0
    """Seconds of computing for a token of context that a decode attends to."""
    per_attention_pair_s: float = 0.0
    """Seconds of computing for a pair of prompt tokens of which one attends to the other."""
    per_draft_step_s: float = 0.0
    """Seconds that the step takes longer for each token drafted before it."""
    memory_s: float = 0.0
    """Seconds of reading weights, beside which computing is hidden."""
    memory_per_context_token_s: float = 0.0
    """Seconds of reading a token of context."""
    memory_per_work: float = 0.0
    """Seconds of reading for a second of computing."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value >= 0 for value in self.terms):
            raise ValueError(f"every term must be a finite number of seconds, not negative: {self}")
        if self.per_token_s <= 0:
            raise ValueError("per_token_s must be positive: a step's room is counted in it")
        if self.memory_per_work > 1:
            raise ValueError(f"memory_per_work must not be above 1: {self.memory_per_work}")

    @property
    def terms(self) -> tuple[float, ...]:
        """The terms in the order of the kernels' columns from WORKER_OVERHEAD_S on."""
        return (
            self.overhead_s,
            self.per_token_s,
            self.per_request_s,
            self.per_context_token_s,
            self.per_attention_pair_s,
            self.per_draft_step_s,
            self.memory_s,
            self.memory_per_context_token_s,
            self.memory_per_work,
        )

    def without_s(self, requests: int, context_tokens: int) -> float:
        """Return seconds by which a step is shorter at least without these decodes, whichever bounds it.

        Computing bounds a step, or reading memory does.
        """
        computing_s = requests * (self.per_token_s + self.per_request_s) + context_tokens * self.per_context_token_s
        if self.memory_s + self.memory_per_context_token_s + self.memory_per_work <= 0:
            return computing_s
        return min(computing_s, context_tokens * self.memory_per_context_token_s)

    @classmethod
    def of(cls, model: PerformanceModel, *, prefills: bool = True, decodes: bool = True) -> StepBound:
        """Return the bound from a fitted model, which should be a bound itself; no other place knows the model's form.

        Nothing that the model says can take longer than what this says; where the two forms differ, this is larger.

        Args:
            prefills, decodes: what the worker does; the largest margin of the regimes that it meets is used.
        """
        c, m = model.vector[:TERMS], model.vector[TERMS : 2 * TERMS]
        margins = model.margins
        met = [margins[StepRegime.PREFILL]] * prefills + [margins[StepRegime.DECODE]] * decodes
        margin = max([*met, margins[StepRegime.MIXED]] if prefills and decodes else met)
        # Order of `StepCost.vector`: base, token, request, context token, attention pair, draft step.
        token, request, pair = (max(c[term], m[term], _LEAST_S if term == 1 else 0.0) for term in (1, 2, 4))
        ratios = [memory / cost for memory, cost in ((m[1], token), (m[2], request), (m[4], pair)) if cost > 0]
        return cls(
            overhead_s=margin * c[0],
            per_token_s=margin * token,
            per_request_s=margin * request,
            per_context_token_s=margin * c[3],
            per_attention_pair_s=margin * pair,
            per_draft_step_s=margin * max(c[5], m[5]),
            memory_s=margin * max(0.0, m[0] - c[0]),
            memory_per_context_token_s=margin * m[3],
            memory_per_work=max(ratios),
        )


@dataclass(frozen=True)
class Tiers:
    """The TPOTs that a round plans for, ascending; every request is counted in the loosest tier that it allows."""

    tpot_s: tuple[float, ...]
    """TPOT of each tier in seconds."""
    acceptance: tuple[float, ...] = ()
    """Probability that a draft token of each tier is accepted; empty: nothing is drafted."""
    max_draft_tokens: int = 0
    """Most draft tokens in a step of a request."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.tpot_s) <= MAX_TIERS:
            raise ValueError(f"1 to {MAX_TIERS} tiers can be planned for, not {len(self.tpot_s)}")
        if not all(math.isfinite(tpot_s) and tpot_s > 0 for tpot_s in self.tpot_s):
            raise ValueError(f"every TPOT must be finite and positive: {self.tpot_s}")
        if list(self.tpot_s) != sorted(set(self.tpot_s)):
            raise ValueError(f"TPOTs must ascend: {self.tpot_s}")
        if self.acceptance and len(self.acceptance) != len(self.tpot_s):
            raise ValueError("acceptance needs one entry a tier")
        if not all(0 <= alpha < 1 for alpha in self.acceptance):
            raise ValueError(f"acceptance must be at least 0 and below 1: {self.acceptance}")
        if not 0 <= self.max_draft_tokens <= MAX_DRAFT:
            raise ValueError(f"max_draft_tokens must be 0 to {MAX_DRAFT}: {self.max_draft_tokens}")

    @cached_property
    def tpots(self) -> Floats:
        """TPOT of each tier in seconds, (tiers,)."""
        return np.array(self.tpot_s, dtype=np.float64)

    @cached_property
    def alphas(self) -> Floats:
        """Probability that a draft token of each tier is accepted, (tiers,)."""
        return np.array(self.acceptance or (0.0,) * len(self.tpot_s), dtype=np.float64)

    @property
    def drafts(self) -> int:
        """Most draft tokens worth planning for: none if none are ever accepted."""
        return self.max_draft_tokens if any(self.acceptance) else 0


@dataclass(frozen=True)
class WorkerProfile:
    """What stays the same on a worker from round to round; keep the object, its step table is built once."""

    bound: StepBound
    """Upper bound of a step's duration."""
    tiers: Tiers
    """TPOTs that the round plans for."""
    max_step_tokens: int
    """Most tokens that a step may compute."""
    max_step_s: float = math.inf
    """Most seconds that a step is planned to last, even without decodes: a tight request that comes next must not be
    stuck behind it."""

    def __post_init__(self) -> None:
        if self.max_step_tokens < 1:
            raise ValueError(f"max_step_tokens must be positive: {self.max_step_tokens}")
        if not self.max_step_s > 0:
            raise ValueError(f"max_step_s must be positive: {self.max_step_s}")

    @cached_property
    def step_table(self) -> Floats:
        """The STEP columns of `kernels.layout`, one row for every step length worth trying."""
        return build_step_table(
            np.array(self.bound.terms, dtype=np.float64),
            self.tiers.tpots,
            self.tiers.alphas,
            self.tiers.drafts,
            self.max_step_s,
        )
