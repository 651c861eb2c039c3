"""A step while it is being filled: what is in it so far, and the ways to put more into it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.slo.composer.memory import Memory
from services.slo.composer.prefills import Headroom, Prefill, by_deadline
from services.slo.composer.request_queues import sort_into_queues
from services.slo.composer.step import ComposerPolicy, Limits, SchedulableRequest
from services.slo.composer.step_meter import StepMeter
from services.slo.performance import PerformanceModel


class StepBuilder:
    """Keeps tokens, time and memory of the step together; who gets them is for those who inherit from it to say."""

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
        self._memory = Memory(self._queues, free_blocks, limits)
        self._limits = limits
        self._policy = policy
        self._now_s = now_s
        self._model = model
        self._grants: dict[str, int] = {}
        self._admitted: list[str] = []
        self._limit_s = math.inf
        self._buffered_limit_s = math.inf
        self._beside_s = 0.0
        """Of the step's time, what promised prefills leave to streams of best effort."""
        self._prefills_alone = False
        """Promised prefills were served in a step that had no decodes."""
        self._memory_contended = False
        """Something that goes first was not let in for want of memory: what comes after must not take it away."""

    def _by_deadline(self, works: Sequence[SchedulableRequest]) -> list[Prefill]:
        return by_deadline(works, self._meter, self._limits.max_step_tokens, self._now_s, self._best_case_fraction())

    def _best_case_fraction(self) -> float:
        """Of what prefills are predicted to take, what they take if all goes well."""
        return self._meter.best_case_fraction(self._policy.best_case_fraction)

    def _headroom_in(self, step_s: float, first_step_s: float | None = None, skipped_s: float = 0.0) -> Headroom:
        """What the streams of the step leave to prefills in steps of that length with as many streams."""
        return Headroom(step_s if first_step_s is None else first_step_s, step_s, self._meter.seconds(), skipped_s)

    def _still_there(self, works: Sequence[SchedulableRequest]) -> Sequence[SchedulableRequest]:
        """Without those that have been preempted."""
        if not self._memory.preempted:
            return works
        gone = {w.request_id for w in self._memory.preempted}
        return [w for w in works if w.request_id not in gone]

    def _is_full(self, limit_s: float) -> bool:
        """Whether nothing more fits the step."""
        shortest_step_s = min(self._meter.with_decode_s(0), self._meter.with_prefill_s(1, 0))
        return self._tokens_left() < 1 or shortest_step_s > limit_s

    def _tokens_left(self) -> int:
        """Tokens for which the step has room, time apart."""
        return self._limits.max_step_tokens - self._meter.tokens

    def _chunk(self, work: SchedulableRequest, limit_s: float) -> int:
        """The chunk of a prefill for which the step has room."""
        tokens = min(work.pending_tokens, self._tokens_left())
        return self._meter.chunk(tokens, work.computed_tokens, limit_s) if tokens > 0 else 0

    def _serve_stream(self, work: SchedulableRequest, limit_s: float, may_preempt: bool = False) -> None:
        """One token, and drafts; `may_preempt`: best effort that came later gives up its KV for it."""
        meter, context_tokens = self._meter, work.computed_tokens
        took_s = meter.with_decode_s(context_tokens) if work.decoding else meter.with_prefill_s(1, context_tokens)
        if took_s > limit_s or self._tokens_left() < 1:
            return
        memory = self._memory
        if not memory.take(work, 1) and not (
            may_preempt and memory.take(work, 1, memory.later_best_effort(work, self._grants))
        ):
            return
        self._grants[work.request_id] = 1
        if work.decoding:
            meter.add_decodes(1, context_tokens)
            if work.draft_tokens > 0:
                self._serve_drafts(work, limit_s)
        else:
            meter.add_prefill(1, context_tokens)

    def _add_prefill(self, work: SchedulableRequest, tokens: int) -> int:
        """Returns the tokens for which there is memory, which are those granted."""
        tokens = self._memory.use_reserved(work, tokens)
        if tokens > 0:
            self._meter.add_prefill(tokens, work.computed_tokens)
            self._grants[work.request_id] = tokens
        return tokens

    def _serve_all_drafts(self, works: Sequence[SchedulableRequest], limit_s: float) -> None:
        """Those of streams in the step; one look tells whether they all fit, as they nearly always do."""
        if not works:
            return
        tokens, longest = sum([w.draft_tokens for w in works]), max([w.draft_tokens for w in works])
        fits = tokens <= self._tokens_left() and self._meter.with_drafts_s(tokens, longest) <= limit_s
        if fits and self._memory.take_drafts(works):
            self._meter.add_drafts(tokens, longest)
            self._grants.update({w.request_id: 1 + w.draft_tokens for w in works})
            return
        for w in sorted(works, key=lambda w: w.due_s):
            self._serve_drafts(w, limit_s)

    def _serve_drafts(self, work: SchedulableRequest, limit_s: float) -> None:
        """Of a decode in the step; nobody gives anything up for them."""
        tokens = self._meter.drafts(min(work.draft_tokens, self._tokens_left()), limit_s)
        while tokens > 0 and not self._memory.take(work, 1 + tokens):
            tokens -= 1
        if tokens > 0:
            self._meter.add_drafts(tokens, tokens)
            self._grants[work.request_id] += tokens

    def _admit(self, work: SchedulableRequest, late: bool) -> bool:
        """Whether there is memory. One that can be in time is not overtaken to it; one that is late stops nobody."""
        admit = self._memory.admit if work.best_effort else self._memory.admit_promised
        if not self._memory_contended and admit(work):
            self._admitted.append(work.request_id)
            return True
        self._memory_contended = self._memory_contended or not (late or work.best_effort)
        return False
