"""The part of a step that best effort gets."""

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
"""Largest number of best-effort prompts that are tried among promised ones in a step, which bounds the work of it."""
MIN_BEST_EFFORT_FRACTION = 0.25
"""Fraction of the longest step that promises allow which best effort may fill in any case (0.4 kept up to 1.2 points
fewer contracts: docs/decisions/2026-11-29-best-effort-gives-way.md)."""


class BestEffort(StepBuilder):
    """Adds best effort to a step, at no cost to promised work.

    Attainable best effort, whose contract can still be kept, goes before that which has none or cannot keep it.
    """

    def _attainable_streams(self, streams: Streams, prefills: Sequence[Prefill]) -> Sequence[SchedulableRequest]:
        """Return the best-effort streams whose contract can be kept beside promised work, and take their blocks.

        Return none if all of them together would make a promised prefill short of time or a promised stream late, or
        take memory that promised work waits for.

        Args:
            prefills: promised prefills in order of service.
        """
        now_s, meter = self._now_s, self._meter
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        works, took_s = self._still_there(self._queues.attainable_streams), 0.0
        while works:
            took_s = meter.with_decode_s(sum([w.computed_tokens for w in works]), len(works))
            in_time = [w for w in works if w.due_s >= now_s + took_s]
            if len(in_time) == len(works):
                break
            works = in_time
        if not works or took_s > streams.limit_s or len(works) > self._tokens_left():
            return ()
        if not self._kv.fits(works, waiting):
            return ()
        limit_s = min(streams.buffered_limit_s, max(took_s, min([min(w.due_s - now_s, w.tpot_s) for w in works])))
        if limit_s <= 0 or short_of_time(prefills, Headroom(limit_s, limit_s, took_s), now_s, 1 - SPARE_FRACTION):
            return ()
        for w in works:
            self._kv.take(w, 1)
        return works

    def _joined_by_attainable(self, prefills: list[Prefill], streams: Streams) -> list[Prefill]:
        """Return the promised prefills with attainable best effort among them, as far as these have time to spare."""
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        if not self._kv.fits((), waiting):
            return prefills
        may_skip = self._policy.streams_may_skip and streams.served
        skipped_s = self._meter.seconds() - self._meter.shortest_step_s() if may_skip else 0.0
        extended = self._headroom_in(streams.extended_buffered_limit_s, skipped_s=skipped_s)
        attainable = []
        for each in self._attainable_prefills(extended)[:MAX_ATTAINABLE_PREFILLS]:
            if each.late:
                break
            if each.work.running:
                attainable.append(each)
            elif self._kv.fits((), [*waiting, each.work]):
                attainable.append(each)
                waiting.append(each.work)
        if not attainable:
            return prefills
        return with_attainable(prefills, attainable, self._headroom_in(streams.buffered_limit_s), extended, self._now_s)

    def _attainable_prefills(self, headroom: Headroom) -> list[Prefill]:
        """Return the best-effort prefills that can still meet their deadline, in order of service.

        Where not all of them can, the longest are marked late and come last; see `most_in_time`.
        """
        there = self._still_there(self._queues.best_effort)
        works = [w for w in there if w.due_s < math.inf and not w.decoding and not w.pulls_kv]
        prefills = [each for each in self._by_deadline(works) if not each.late] if works else []
        if len(prefills) < 2:
            return prefills
        return most_in_time(prefills, headroom, self._now_s, self._best_case_fraction())

    def _serve_best_effort(self) -> None:
        """Give what is left of the step to attainable best effort by due time, then to the others, shortest first.

        Streams, with one token each, are as short as can be; waiting makes a request as good as a shorter one
        (`ComposerPolicy.ageing`).
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
            elif self._kv.preempted and any(w is other for other in self._kv.preempted):
                continue
            elif w.pending_tokens == 1:
                self._serve_stream(w, limit_s, may_preempt=True)
                self._extend_prefills(limit_s)
            else:
                self._add_prefill(w, self._chunk(w, limit_s))

    def _best_effort_limit_s(self) -> float:
        """Return the longest step that best effort may make; see `ComposerPolicy.best_effort_step_multiple`."""
        queues, meter = self._queues, self._meter
        if not (queues.has_unpromised_contract and (queues.streams or queues.prefills)):
            return self._buffered_limit_s
        longer_s = self._policy.best_effort_step_multiple * max(meter.seconds(), meter.shortest_step_s())
        return min(self._buffered_limit_s, max(longer_s, MIN_BEST_EFFORT_FRACTION * self._buffered_limit_s))

    def _ranks(self, works: Sequence[SchedulableRequest]) -> list[SchedulableRequest]:
        """Return best effort in the order in which it is served."""
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
        """Add all best-effort streams at once if they take little of the step; return what is left to serve."""
        best_effort, kv = self._queues.best_effort, self._kv
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
            more_s > min(left_s, max(left_s / 2, self._best_effort_decode_s))
            or len(at_once) > self._tokens_left() / 2
            or not kv.has_blocks(at_once)
        ):
            return [w for w in best_effort if w.request_id not in grants] if grants else best_effort
        self._meter.add_decodes(len(at_once), context_tokens)
        self._grants.update(dict.fromkeys([w.request_id for w in at_once], 1))
        return [w for w in best_effort if w.request_id not in self._grants]

    def _extend_prefills(self, limit_s: float) -> None:
        """Lengthen promised prefills where a first decode has made the step one of another kind with a closer bound.

        Promised work gets the time that this frees before best effort does.
        """
        if not self._prefills_alone or not self._meter.decode_tokens:
            return
        self._prefills_alone = False
        for w in self._queues.prefills:
            granted = self._grants.get(w.request_id, 0)
            context_tokens = w.computed_tokens + granted
            left = min(w.pending_tokens - granted, self._tokens_left())
            if granted and left > 0:
                more = self._meter.chunk(left, context_tokens, limit_s)
                more = self._kv.use_reserved(w, granted + more) - granted
                if more > 0:
                    self._meter.extend_prefill(more, context_tokens)
                    self._grants[w.request_id] += more

    def _serve_waiting(self, work: SchedulableRequest, limit_s: float) -> None:
        """Admit a waiting request and add its first chunk; nobody overtakes it to memory that it waits for."""
        tokens = 0 if work.pulls_kv else self._chunk(work, limit_s)
        if self._memory_contended or (tokens < 1 and not work.pulls_kv):
            return
        if not self._kv.admit(work):
            self._memory_contended = True
            return
        self._admitted.append(work.request_id)
        if tokens:
            self._add_prefill(work, tokens)
