"""First-come-first-served schedulers: vLLM's two, Sarathi-Serve, and DistServe with its two kinds of instances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.slo.composer import SchedulableRequest
from services.slo.performance import PerformanceModel, StepShape
from simulator.cluster import MakePolicy, PolicyContext
from simulator.engine import Composer, Engine
from simulator.policies.base import BasePolicy, fewest_requests, least_loaded
from simulator.policies.batch import Batch, decoding
from simulator.request import SimRequest

DEFAULT_BUDGET = 2048
"""Number of tokens of a step in vLLM's default with chunked prefill."""
GRID = 32
"""Tokens between two chunk budgets that are tried (chosen)."""
MOST_DRAFTS = 10

Budget = Callable[[Batch, Sequence[SchedulableRequest]], int]
"""A function that says how many prompt tokens a step may take beside the decodes that are in it."""


@dataclass(slots=True)
class Fcfs:
    """A composer that serves decodes first, and then prompts in chunks, first come first served.

    With `prompts_alone`, steps hold whole prompts and nothing else while there are any.
    """

    budget: Budget
    prompts_alone: bool = False
    drafts: Callable[[Engine, int, int], int] | None = None
    """A function that says how many tokens to draft, given the number of decodes of a step and their context."""

    def compose(self, engine: Engine, now_s: float) -> Batch:
        """Return the next step."""
        batch = Batch.of(engine)
        works = engine.works
        decodes = [work for work in works if decoding(work)]
        if not self.prompts_alone:
            self._decode(batch, decodes)
        self._prompts(batch, works, self.budget(batch, decodes))
        if self.prompts_alone and not batch.grants:
            self._decode(batch, decodes)
        return batch

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        """Do nothing: these schedulers do not learn."""

    def _decode(self, batch: Batch, decodes: Sequence[SchedulableRequest]) -> None:
        drafts = 0
        if self.drafts is not None and decodes:
            drafts = self.drafts(batch.engine, len(decodes), sum([work.computed_tokens for work in decodes]))
        for work in decodes:
            batch.decode(work, drafts)

    def _prompts(self, batch: Batch, works: Sequence[SchedulableRequest], budget: int) -> None:
        waiting = []
        for work in works:
            if not work.running:
                waiting.append(work)
            elif work.pending_tokens > 1 and not work.pulls_kv and budget > 0:
                budget -= self._chunk(batch, work, budget)
        for work in waiting:
            if work.pulls_kv:
                if not batch.admit(work):
                    break
                continue
            whole = self.prompts_alone and batch.grants
            if budget < (work.pending_tokens if whole else 1) or not batch.admit(work):
                break
            budget -= self._chunk(batch, work, budget)

    def _chunk(self, batch: Batch, work: SchedulableRequest, budget: int) -> int:
        tokens = min(work.pending_tokens, budget)
        batch.prefill(work, tokens)
        return tokens


def fixed(tokens: int) -> Budget:
    """Return a budget that holds the tokens of a step constant, decodes included."""
    return lambda batch, _: tokens - batch.decode_tokens


def within(model: PerformanceModel, tpot_s: float, most_tokens: int) -> Budget:
    """Return a budget, the largest on a grid with which a step is predicted to take no longer than `tpot_s`.

    Args:
        most_tokens: greatest number of tokens of a step, decodes included.
    """
    vector = model.vector

    def budget(batch: Batch, decodes: Sequence[SchedulableRequest]) -> int:
        if not decodes:
            return most_tokens
        alone_s = model.step_s(batch.shape)
        room_s = tpot_s - alone_s - max(vector[2], vector[8])
        tokens = int(room_s / max(vector[1], vector[7], 1e-12)) // GRID * GRID
        while tokens > 0 and model.step_s(_with_prompt(batch, tokens)) > tpot_s:
            tokens -= GRID
        return max(0, min(tokens, most_tokens - batch.decode_tokens))

    return budget


def _with_prompt(batch: Batch, tokens: int) -> StepShape:
    return StepShape(
        1, tokens, tokens * tokens / 2, batch.decodes, batch.decode_tokens, batch.context_tokens, batch.drafts
    )


def fastest_drafts(engine: Engine, decodes: int, context_tokens: int) -> int:
    """Return the number of drafted tokens that brings most tokens a second, whoever needs them."""
    alpha = engine.machine.acceptance

    def rate(drafts: int) -> float:
        shape = StepShape(0, 0, 0.0, decodes, decodes * (1 + drafts), context_tokens, drafts)
        return (1 - alpha ** (drafts + 1)) / (1 - alpha) / engine.machine.truth.step_s(shape)

    return max(range(engine.machine.max_draft_tokens + 1), key=rate)


class Replicas(BasePolicy):
    """A policy whose engines each do everything; a request goes to the least loaded."""

    def __init__(self, context: PolicyContext, composer: Composer) -> None:
        super().__init__(context)
        self.engines = [self.engine(index, composer) for index in range(context.workers)]

    def arrive(self, request: SimRequest) -> None:
        """Submit a request to the engine with least to do."""
        least_loaded(self.alive(self.engines), request).submit(request)

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        """Treat requests of a failed engine as if they had just come."""
        for request in requests:
            self.arrive(request)


class Split(BasePolicy):
    """A policy with engines that only prefill, and others that only decode."""

    def __init__(self, context: PolicyContext, prefills: int, composer: Fcfs) -> None:
        super().__init__(context)
        self.engines = [self.engine(index, composer) for index in range(context.workers)]
        self._prefills, self._decodes = self.engines[:prefills], self.engines[prefills:]

    def arrive(self, request: SimRequest) -> None:
        """Submit a request to the prefill engine with least to do; it leaves with its first token."""
        request.export = True
        least_loaded(self.alive(self._prefills), request).submit(request)

    def decoder_of(self, request: SimRequest) -> Engine:
        """Return the decode engine with the fewest requests."""
        return fewest_requests(self.alive(self._decodes))

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        """Treat requests of a failed engine as if they had just come."""
        for request in requests:
            self.arrive(request)


def vllm_prefill_first(context: PolicyContext) -> Replicas:
    """Make vLLM as it was before chunked prefill: whole prompts first, and decodes wait meanwhile."""
    return Replicas(context, Fcfs(fixed(context.machine.limits.max_step_tokens), prompts_alone=True))


def vllm_chunked(context: PolicyContext) -> Replicas:
    """Make vLLM with chunked prefill and its default number of tokens a step."""
    return Replicas(context, Fcfs(fixed(DEFAULT_BUDGET)))


def vllm_speculative(context: PolicyContext) -> Replicas:
    """Make vLLM with chunked prefill and the drafts that bring most tokens a second."""
    return Replicas(context, Fcfs(fixed(DEFAULT_BUDGET), drafts=fastest_drafts))


def sarathi(tightest_tpot_s: float, margin: float = 0.0) -> MakePolicy:
    """Return a maker of Sarathi-Serve, whose chunks are as large as the tightest TPOT allows.

    Args:
        margin: share of the TPOT that steps are predicted to leave free.
    """

    def make(context: PolicyContext) -> Replicas:
        return Replicas(context, Fcfs(within(context.machine.truth, tightest_tpot_s * (1 - margin), DEFAULT_BUDGET)))

    return make


def distserve(prefills: int) -> MakePolicy:
    """Return a maker of DistServe with so many prefill workers."""

    def make(context: PolicyContext) -> Split:
        return Split(context, prefills, Fcfs(fixed(context.machine.limits.max_step_tokens)))

    return make
