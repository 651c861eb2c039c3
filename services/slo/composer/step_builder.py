"""A step while it is filled: its content so far, and the ways to add to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.slo.composer.kv_budget import KvBudget
from services.slo.composer.prefills import Headroom, Prefill, by_deadline
from services.slo.composer.request_queues import sort_into_queues
from services.slo.composer.step import ComposerPolicy, Limits, SchedulableRequest
from services.slo.composer.step_meter import StepMeter
from services.slo.performance import PerformanceModel


class StepBuilder:
    """Adds requests to a step and keeps its tokens, time and memory within their limits.

    Classes that inherit from it decide who is added.
    """

    def __init__(
        self,
        work: Sequence[SchedulableRequest],
        free_blocks: int,
        model: PerformanceModel,
        limits: Limits,
        now_s: float,
        policy: ComposerPolicy,
    ) -> None:
        self._queues = sort_into_queues(work, limits.block_tokens, policy.buffer_tpots)
        self._meter = StepMeter(model)
        self._kv = KvBudget(self._queues, free_blocks, limits)
        self._limits = limits
        self._policy = policy
        self._now_s = now_s
        self._model = model
        self._grants: dict[str, int] = {}
        self._admitted: list[str] = []
        self._limit_s = math.inf
        """Longest time that the step may take for promised work."""
        self._buffered_limit_s = math.inf
        """Longest time that keeps the buffers of streams; see `Streams`."""
        self._best_effort_decode_s = 0.0
        """Part of the step's time that promised prefills leave to streams of best effort."""
        self._prefills_alone = False
        """Whether promised prefills were added while the step had no decodes."""
        self._memory_contended = False
        """Whether a request that goes first was not admitted for want of memory, which what comes after must not
        take."""

    def _by_deadline(self, works: Sequence[SchedulableRequest]) -> list[Prefill]:
        return by_deadline(works, self._meter, self._limits.max_step_tokens, self._now_s, self._best_case_fraction())

    def _best_case_fraction(self) -> float:
        return self._meter.best_case_fraction(self._policy.best_case_fraction)

    def _headroom_in(self, step_s: float, first_step_s: float | None = None, skipped_s: float = 0.0) -> Headroom:
        """Return what the streams of the step leave to prefills in steps of `step_s` with as many streams."""
        return Headroom(step_s if first_step_s is None else first_step_s, step_s, self._meter.seconds(), skipped_s)

    def _still_there(self, works: Sequence[SchedulableRequest]) -> Sequence[SchedulableRequest]:
        """Return these requests without those that have been preempted."""
        if not self._kv.preempted:
            return works
        gone = {w.request_id for w in self._kv.preempted}
        return [w for w in works if w.request_id not in gone]

    def _is_full(self, limit_s: float) -> bool:
        """Return whether nothing more fits the step."""
        with_token_s = min(self._meter.with_decode_s(0), self._meter.with_prefill_s(1, 0))
        return self._tokens_left() < 1 or with_token_s > limit_s

    def _tokens_left(self) -> int:
        """Return how many tokens may still be added, as far as their number is limited."""
        return self._limits.max_step_tokens - self._meter.tokens

    def _chunk(self, work: SchedulableRequest, limit_s: float) -> int:
        """Return the longest chunk of a prefill that fits the step."""
        tokens = min(work.pending_tokens, self._tokens_left())
        return self._meter.chunk(tokens, work.computed_tokens, limit_s) if tokens > 0 else 0

    def _serve_stream(self, work: SchedulableRequest, limit_s: float, may_preempt: bool = False) -> None:
        """Add one token of a stream, and drafts, if they fit.

        Args:
            may_preempt: later best effort that is not in the step may be preempted for a block.
        """
        meter, context_tokens = self._meter, work.computed_tokens
        took_s = meter.with_decode_s(context_tokens) if work.decoding else meter.with_prefill_s(1, context_tokens)
        if took_s > limit_s or self._tokens_left() < 1:
            return
        kv = self._kv
        if not kv.take(work, 1) and not (may_preempt and kv.take(work, 1, kv.later_best_effort(work, self._grants))):
            return
        self._grants[work.request_id] = 1
        if work.decoding:
            meter.add_decodes(1, context_tokens)
            if work.draft_tokens > 0:
                self._serve_drafts(work, limit_s)
        else:
            meter.add_prefill(1, context_tokens)

    def _add_prefill(self, work: SchedulableRequest, tokens: int) -> int:
        """Add a chunk of a running or admitted prefill, and return its tokens, which are those there is memory for."""
        tokens = self._kv.use_reserved(work, tokens)
        if tokens > 0:
            self._meter.add_prefill(tokens, work.computed_tokens)
            self._grants[work.request_id] = tokens
        return tokens

    def _serve_all_drafts(self, works: Sequence[SchedulableRequest], limit_s: float) -> None:
        """Add the drafts of streams in the step; one look tells whether all fit, as they nearly always do."""
        if not works:
            return
        tokens, longest = sum([w.draft_tokens for w in works]), max([w.draft_tokens for w in works])
        fits = tokens <= self._tokens_left() and self._meter.with_drafts_s(tokens, longest) <= limit_s
        if fits and self._kv.take_drafts(works):
            self._meter.add_drafts(tokens, longest)
            self._grants.update({w.request_id: 1 + w.draft_tokens for w in works})
            return
        for w in sorted(works, key=lambda w: w.due_s):
            self._serve_drafts(w, limit_s)

    def _serve_drafts(self, work: SchedulableRequest, limit_s: float) -> None:
        """Add as many drafts of a decode in the step as fit; nobody is preempted for them."""
        tokens = self._meter.drafts(min(work.draft_tokens, self._tokens_left()), limit_s)
        while tokens > 0 and not self._kv.take(work, 1 + tokens):
            tokens -= 1
        if tokens > 0:
            self._meter.add_drafts(tokens, tokens)
            self._grants[work.request_id] += tokens

    def _admit(self, work: SchedulableRequest, late: bool) -> bool:
        """Admit a waiting request if there is memory, and return whether there was.

        A request that can be in time is not overtaken to the memory that it waits for; one that is late stops nobody.
        """
        admit = self._kv.admit if work.best_effort else self._kv.admit_promised
        if not self._memory_contended and admit(work):
            self._admitted.append(work.request_id)
            return True
        self._memory_contended = self._memory_contended or not (late or work.best_effort)
        return False
