"""What a step does for best effort."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.slo.composer.prefills import (
    SPARE_FRACTION,
    Headroom,
    Prefill,
    most_in_time,
    short_of_time,
    with_attainable,
)
from services.slo.composer.step import SchedulableRequest
from services.slo.composer.step_builder import StepBuilder
from services.slo.composer.streams import Streams

MAX_ATTAINABLE_PREFILLS = 16
"""Prompts of best effort that are tried among promised ones in a step."""
MIN_BEST_EFFORT_FRACTION = 0.25
"""Of the longest step that promises allow, what best effort may fill in any case."""


class BestEffort(StepBuilder):
    """Those whose contract may still be kept go before those that have none or cannot keep it; promises pay nothing."""

    def _attainable_streams(self, streams: Streams, prefills: Sequence[Prefill]) -> Sequence[SchedulableRequest]:
        """Streams of best effort whose contract is kept so far; none, if a promised prompt would be short of time for
        them or promised streams late. There are blocks for them.
        """
        now_s, meter = self._now_s, self._meter
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        works, took_s = self._still_there(self._queues.attainable), 0.0
        while works:
            took_s = meter.with_decode_s(sum([w.computed_tokens for w in works]), len(works))
            in_time = [w for w in works if w.due_s >= now_s + took_s]
            if len(in_time) == len(works):
                break
            works = in_time
        if not works or took_s > streams.limit_s or len(works) > self._tokens_left():
            return ()
        if not self._memory.fits(works, waiting):
            return ()
        limit_s = min(streams.buffered_limit_s, max(took_s, min([min(w.due_s - now_s, w.tpot_s) for w in works])))
        if limit_s <= 0 or short_of_time(prefills, Headroom(limit_s, limit_s, took_s), now_s, 1 - SPARE_FRACTION):
            return ()
        for w in works:
            self._memory.take(w, 1)
        return works

    def _joined_by_attainable(self, prefills: list[Prefill], streams: Streams) -> list[Prefill]:
        """Prompts of best effort that may be in time take their turn among promised ones that have time to spare."""
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        if not self._memory.fits((), waiting):
            return prefills
        skipped_s = (
            self._meter.seconds() - self._meter.shortest_step_s()
            if self._policy.streams_may_skip and streams.served
            else 0.0
        )
        extended = self._headroom_in(streams.extended_buffered_limit_s, skipped_s=skipped_s)
        attainable = []
        for each in self._attainable_prefills(extended)[:MAX_ATTAINABLE_PREFILLS]:
            if each.late:
                break
            if each.work.running:
                attainable.append(each)
            elif self._memory.fits((), [*waiting, each.work]):
                attainable.append(each)
                waiting.append(each.work)
        if not attainable:
            return prefills
        return with_attainable(prefills, attainable, self._headroom_in(streams.buffered_limit_s), extended, self._now_s)

    def _attainable_prefills(self, headroom: Headroom) -> list[Prefill]:
        """Of best effort that may be in time; those that others would not be for are late."""
        there = self._still_there(self._queues.best_effort)
        works = [w for w in there if w.due_s < math.inf and not w.decoding and not w.pulls_kv]
        prefills = [each for each in self._by_deadline(works) if not each.late] if works else []
        if len(prefills) < 2:
            return prefills
        return most_in_time(prefills, headroom, self._now_s, self._best_case_fraction())

    def _serve_best_effort(self) -> None:
        """What is left to those whose contract may still be kept, by due time and length; then to the others, shortest
        first, with ageing. Streams of best effort are as short as can be.
        """
        limit_s = self._buffered_limit_s = self._best_effort_limit_s()
        self._prefills_alone = not self._meter.decode_tokens
        works = self._serve_streams_at_once()
        self._extend_prefills(limit_s)
        if self._is_full(limit_s):
            works = [w for w in works if w.pulls_kv]
        grants = self._grants
        for w in self._ranks([w for w in works if w.request_id not in grants]):
            if not w.running:
                self._serve_waiting(w, limit_s)
            elif self._memory.preempted and any(w is other for other in self._memory.preempted):
                continue
            elif w.pending_tokens == 1:
                self._serve_stream(w, limit_s, may_preempt=True)
                self._extend_prefills(limit_s)
            else:
                self._add_prefill(w, self._chunk(w, limit_s))

    def _best_effort_limit_s(self) -> float:
        """See `ComposerPolicy.best_effort_step_multiple`."""
        queues, meter = self._queues, self._meter
        if not (queues.has_unpromised_contract and (queues.streams or queues.prefills)):
            return self._buffered_limit_s
        beside_s = self._policy.best_effort_step_multiple * max(meter.seconds(), meter.shortest_step_s())
        return min(self._buffered_limit_s, max(beside_s, MIN_BEST_EFFORT_FRACTION * self._buffered_limit_s))

    def _ranks(self, works: Sequence[SchedulableRequest]) -> list[SchedulableRequest]:
        """Best effort in the order in which it is served."""
        policy, token_s = self._policy, self._meter.prefill_s(1, 0)
        attainable = {
            each.request_id: index
            for index, each in enumerate(self._attainable_prefills(self._headroom_in(self._buffered_limit_s)))
        }

        def rank(work: SchedulableRequest) -> tuple[bool, float, str]:
            index = attainable.get(work.request_id)
            if index is not None:
                return False, float(index), ""
            if work.due_s < math.inf and work.pending_tokens == 1:
                return False, -1.0, work.request_id
            return True, work.pending_tokens * token_s + policy.ageing * work.waiting_since_s, work.request_id

        return sorted(works, key=rank)

    def _serve_streams_at_once(self) -> list[SchedulableRequest]:
        """All streams of best effort if they take no room worth arguing about; returns what is left to serve."""
        best_effort, memory = self._queues.best_effort, self._memory
        grants = self._grants
        at_once = [
            w
            for w in self._still_there(best_effort)
            if w.decoding and w.running and not w.draft_tokens and w.request_id not in grants
        ]
        context_tokens = sum([w.computed_tokens for w in at_once])
        before_s = self._meter.seconds() if self._meter.tokens else 0.0
        more_s = self._meter.with_decode_s(context_tokens, len(at_once)) - before_s
        left_s = self._buffered_limit_s - before_s
        if (
            more_s > min(left_s, max(left_s / 2, self._beside_s))
            or len(at_once) > self._tokens_left() / 2
            or not memory.has_blocks(at_once)
        ):
            return [w for w in best_effort if w.request_id not in grants] if grants else best_effort
        self._meter.add_decodes(len(at_once), context_tokens)
        self._grants.update(dict.fromkeys([w.request_id for w in at_once], 1))
        return [w for w in best_effort if w.request_id not in self._grants]

    def _extend_prefills(self, limit_s: float) -> None:
        """With decodes a step is of another kind, for which the bound may be closer: promises get that room first."""
        if not self._prefills_alone or not self._meter.decode_tokens:
            return
        self._prefills_alone = False
        for w in self._queues.prefills:
            granted = self._grants.get(w.request_id, 0)
            context_tokens = w.computed_tokens + granted
            left = min(w.pending_tokens - granted, self._tokens_left())
            if granted and left > 0:
                more = self._meter.chunk(left, context_tokens, limit_s)
                more = self._memory.use_reserved(w, granted + more) - granted
                if more > 0:
                    self._meter.extend_prefill(more, context_tokens)
                    self._grants[w.request_id] += more

    def _serve_waiting(self, work: SchedulableRequest, limit_s: float) -> None:
        """Whoever has come to the front is not overtaken to the memory that it waits for."""
        tokens = 0 if work.pulls_kv else self._chunk(work, limit_s)
        if self._memory_contended or (tokens < 1 and not work.pulls_kv):
            return
        if not self._memory.admit(work):
            self._memory_contended = True
            return
        self._admitted.append(work.request_id)
        if tokens:
            self._add_prefill(work, tokens)
