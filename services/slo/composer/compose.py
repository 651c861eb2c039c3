"""The decision what one engine step computes (docs/explanation/planning-mathematics.md, section 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.slo.composer.best_effort import BestEffort
from services.slo.composer.prefills import (
    Prefill,
    best_effort_decode_s,
    late_ones_first,
    most_in_time,
    rescued_by_skipping_s,
    short_of_time,
)
from services.slo.composer.step import ComposerPolicy, Composition, Limits, SchedulableRequest
from services.slo.composer.streams import Streams, StreamSelector
from services.slo.performance import PerformanceModel

DEFAULT_POLICY = ComposerPolicy()
"""The policy of an engine for which nothing else is configured."""


def compose(
    work: Sequence[SchedulableRequest],
    free_blocks: int,
    model: PerformanceModel,
    limits: Limits,
    now_s: float,
    policy: ComposerPolicy = DEFAULT_POLICY,
) -> Composition:
    """Compose the next step of an engine: return how many tokens of each request it computes.

    Promised streams come first, then promised prefills, then best effort; `README.md` has the rules. Nothing is
    remembered between calls, so that the clock may go backwards.

    Args:
        work: everything the engine holds, each `request_id` once.
        free_blocks: KV blocks that no request holds, including cached ones that can be reused.
        model: upper bound on step times, as `StepTimeFit.bound` makes it.
        limits: what no step may exceed.
        now_s: when the step begins.
        policy: what the composer may choose.

    Raises:
        ValueError: `now_s` is not finite.
    """
    if not math.isfinite(now_s):
        raise ValueError(f"now_s must be finite; got {now_s}")
    return _Step(work, free_blocks, model, limits, now_s + policy.reserve_s, policy).compose()


class _Step(BestEffort):
    """Fills a step in order of service: promised streams, promised prefills, streams that were held, best effort."""

    def compose(self) -> Composition:
        """Fill the step and return it."""
        queues = self._queues
        self._serve_promised()
        if not self._grants and (queues.streams or queues.prefills):
            self._serve_first_runnable([w for w in (*queues.streams, *queues.prefills) if w.running])
        if queues.best_effort:
            self._serve_best_effort()
        if not self._grants:
            self._serve_first_runnable([*queues.streams, *queues.prefills, *queues.best_effort])
        shape = self._meter.shape()
        return Composition(
            grants=self._grants,
            preempted=tuple(w.request_id for w in self._kv.preempted),
            admitted=tuple(self._admitted),
            held=self._held(),
            limit_s=self._limit_s,
            predicted_s=self._model.step_s(shape),
            shape=shape,
        )

    def _serve_promised(self) -> None:
        """Add promised work, and beside it best effort whose contract can be kept at no cost to a promise."""
        queues, now_s = self._queues, self._now_s
        selector = StreamSelector(queues, self._meter, self._kv, self._policy, self._limits, now_s)
        streams = selector.select()
        promised = self._by_deadline(self._still_there(queues.prefills)) if queues.prefills else []
        prefills = promised
        in_need = self._short_of_time(promised, streams.limit_s)
        if queues.best_effort and not (in_need or streams.held):
            attainable = self._attainable_streams(streams, promised)
            if attainable:
                streams = selector.joined(streams, attainable)
            prefills = self._joined_by_attainable(promised, streams)
        until_s = streams.buffered_limit_s
        if in_need:
            until_s = streams.extended_limit_s
        elif self._short_of_time(promised, streams.limit_s, until_s):
            until_s = streams.limit_s
        if in_need or self._short_of_time(prefills, streams.limit_s, until_s):
            until_s = max(until_s, streams.extended_buffered_limit_s)
            streams = self._hold_streams_for(selector, streams, prefills, until_s)
            until_s = min(until_s, streams.due_s)
            if in_need:
                prefills = most_in_time(prefills, self._headroom_in(until_s), now_s, self._best_case_fraction())
        self._limit_s, self._buffered_limit_s = max(streams.limit_s, until_s), streams.buffered_limit_s
        self._grants.update(dict.fromkeys([w.request_id for w in streams.served], 1))
        if queues.has_drafts:
            drafting = [w for w in streams.served if w.draft_tokens > 0 and w.decoding]
            self._serve_all_drafts([w for w in drafting if not w.best_effort], self._limit_s)
            if all(prefill.work.running for prefill in promised):
                self._serve_all_drafts([w for w in drafting if w.best_effort], self._buffered_limit_s)
        if prefills and queues.best_effort and until_s == self._buffered_limit_s and not streams.held:
            others = [w for w in queues.best_effort if w.running and w.decoding and w.pending_tokens == 1]
            others = [w for w in others if w.request_id not in self._grants]
            self._best_effort_decode_s = best_effort_decode_s(
                prefills, others, self._meter, self._limit_s, self._buffered_limit_s, now_s
            )
        if prefills:
            self._serve_prefills(prefills, until_s)
        # Streams that are held come after prefills, but before best effort.
        for w in streams.held if not self._is_full(self._limit_s) else ():
            self._serve_stream(w, self._limit_s)

    def _short_of_time(self, prefills: Sequence[Prefill], step_s: float, first_s: float | None = None) -> bool:
        """Return whether a prefill that can be in time would be late in steps of that length; most steps have none."""
        return bool(prefills) and short_of_time(prefills, self._headroom_in(step_s, first_s), self._now_s)

    def _serve_prefills(self, prefills: list[Prefill], until_s: float) -> None:
        """Add prefills in order: late ones only as far as streams keep their buffers.

        A prefill that the step completes may tighten its limits for those that follow.

        Args:
            until_s: longest step for prefills that can be in time.
        """
        full = False
        for prefill in late_ones_first(prefills, self._headroom_in(self._limit_s), self._now_s):
            buffered_limit_s = self._buffered_limit_s - self._best_effort_decode_s
            limit_s = (
                buffered_limit_s
                if prefill.late
                else min(max(until_s - self._best_effort_decode_s, buffered_limit_s), self._limit_s)
            )
            if prefill.work.pulls_kv:
                self._admit(prefill.work, prefill.late)
            elif not full and not self._serve_promised_prefill(prefill.work, prefill.late, limit_s):
                full = self._is_full(limit_s)

    def _hold_streams_for(
        self, selector: StreamSelector, streams: Streams, prefills: Sequence[Prefill], limit_s: float
    ) -> Streams:
        """Hold back streams that are ahead, if that brings a prompt in time that would be late beside them."""
        if not self._policy.streams_may_skip or not streams.served or self._memory_binds(prefills):
            return streams
        beside_s, shortest_step_s = self._meter.seconds(), self._meter.shortest_step_s()
        needed_s = rescued_by_skipping_s(
            prefills, self._headroom_in(limit_s, skipped_s=beside_s - shortest_step_s), self._now_s
        )
        if not needed_s:
            return streams
        return selector.holding_those_that_can_wait(streams, min(needed_s, limit_s - shortest_step_s))

    def _memory_binds(self, prefills: Sequence[Prefill]) -> bool:
        """Return whether one of the prefills lacks memory: a stream frees its own the sooner, the less it is held."""
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        largest = max(waiting, key=lambda w: w.computed_tokens + w.pending_tokens, default=None)
        return largest is not None and not self._kv.can_admit_promised(largest)

    def _serve_promised_prefill(self, work: SchedulableRequest, late: bool, limit_s: float) -> bool:
        """Add a chunk of a promised prefill; return False if none fits the step, or there is no memory."""
        tokens = self._chunk(work, limit_s)
        if tokens < 1 or not (work.running or self._admit(work, late)):
            return False
        if self._add_prefill(work, tokens) == work.pending_tokens and not late:
            # One that is in time only if all goes well ends its step: nothing more is put into it.
            due_in_s = max(self._meter.seconds(), work.due_s - self._now_s)
            self._limit_s, self._buffered_limit_s = min(self._limit_s, due_in_s), min(self._buffered_limit_s, due_in_s)
        return True

    def _serve_first_runnable(self, works: Sequence[SchedulableRequest]) -> None:
        """Add the first request that can run, with as few tokens as there are, where nothing fits the limit.

        No promise that can be kept set that limit, and an idle step would help nobody.
        """
        for w in sorted((w for w in self._still_there(works) if not w.pulls_kv), key=lambda w: not w.running):
            if not w.running:
                if not self._kv.admit(w):
                    continue
                self._admitted.append(w.request_id)
            if w.running and w.pending_tokens == 1:
                self._serve_stream(w, math.inf)
            else:
                self._add_prefill(w, max(1, self._chunk(w, self._limit_s)))
            if self._grants:
                break
        self._limit_s = max(self._limit_s, self._meter.seconds())

    def _held(self) -> tuple[str, ...]:
        """Return the running requests that could have run and are not in the step."""
        queues, grants = self._queues, self._grants
        runnable = queues.running - queues.pulling_kv
        served = len(grants) - sum(request_id in grants for request_id in self._admitted)
        if served + len(self._kv.preempted) == runnable:
            return ()
        works = self._still_there([*queues.streams, *queues.prefills, *queues.best_effort])
        return tuple([w.request_id for w in works if w.running and w.request_id not in grants])
