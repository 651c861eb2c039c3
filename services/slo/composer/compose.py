"""The composition of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from services.slo.composer.cost import StepMeter
from services.slo.composer.docket import sort_out
from services.slo.composer.memory import Memory
from services.slo.composer.prefills import (
    SPARE,
    Prefill,
    by_deadline,
    late_ones_first,
    most_in_time,
    short_of_time,
    time_beside,
    with_hopeful,
)
from services.slo.composer.step import Composition, Limits, Policy, Work
from services.slo.composer.streams import StreamBound
from services.slo.performance import PerformanceModel

DEFAULT_POLICY = Policy()
MOST_HOPEFUL = 16
"""Prompts of best effort that are tried among promised ones in a step."""


def compose(
    work: Sequence[Work],
    free_blocks: int,
    model: PerformanceModel,
    limits: Limits,
    now_s: float,
    policy: Policy = DEFAULT_POLICY,
) -> Composition:
    """What the next step computes.

    Args:
        work: everything the engine holds, each `request_id` once.
        free_blocks: blocks that nobody holds, cached ones that can be reused included.
        model: a bound, as `StepTimeFit.bound` makes it.
        now_s: when the step begins. Nothing is remembered between calls, so the clock may go backwards.

    Raises:
        ValueError: `now_s` is not finite.
    """
    if not math.isfinite(now_s):
        raise ValueError(f"now_s must be finite; got {now_s}")
    return _Step(work, free_blocks, model, limits, now_s + policy.reserve_s, policy).compose()


class _Step:
    """A step while it is being filled: promised streams, promised prefills, streams that were held, best effort."""

    def __init__(
        self,
        work: Sequence[Work],
        free_blocks: int,
        model: PerformanceModel,
        limits: Limits,
        now_s: float,
        policy: Policy,
    ) -> None:
        self._docket = sort_out(work, limits.block_tokens, policy.buffer)
        self._meter = StepMeter(model)
        self._memory = Memory(self._docket, free_blocks, limits)
        self._limits = limits
        self._policy = policy
        self._now_s = now_s
        self._model = model
        self._grants: dict[str, int] = {}
        self._admitted: list[str] = []
        self._limit_s = math.inf
        self._relaxed_s = math.inf
        self._beside_s = 0.0
        """Of the step's time, what promised prefills leave to streams of best effort."""
        self._prefills_alone = False
        """Promised prefills were served in a step that had no decodes."""
        self._crowded = False
        """Something that goes first was not let in for want of memory: what comes after must not take it away."""

    def compose(self) -> Composition:
        docket = self._docket
        if docket.streams or docket.prefills:
            self._serve_promised()
            if not self._grants:
                self._serve_anyone([w for w in (*docket.streams, *docket.prefills) if w.running])
        else:
            self._limit_s = self._relaxed_s = self._policy.longest_step_s(self._meter.least_s())
            self._serve_hopeful([])
        if docket.best_effort:
            self._serve_best_effort()
        if not self._grants:
            self._serve_anyone([*docket.streams, *docket.prefills, *docket.best_effort])
        shape = self._meter.shape()
        return Composition(
            grants=self._grants,
            preempted=tuple(w.request_id for w in self._memory.preempted),
            admitted=tuple(self._admitted),
            held=self._held(),
            limit_s=self._limit_s,
            predicted_s=self._model.step_s(shape),
            shape=shape,
        )

    def _serve_promised(self) -> None:
        bounds = StreamBound(self._docket, self._meter, self._memory, self._policy, self._limits, self._now_s)
        streams = bounds.bound()
        prefills: list[Prefill] = []
        if self._docket.prefills:
            works = self._still_there(self._docket.prefills)
            prefills = self._by_deadline(works)
        in_need = short_of_time(prefills, self._share_left(streams.limit_s), self._now_s)
        if in_need:
            streams = replace(streams, limit_s=streams.stretched_s)
        if in_need and self._policy.skips and not self._memory_binds(prefills):
            streams = bounds.without_those_that_can_wait(streams)
        if in_need:
            prefills = most_in_time(prefills, self._share_left(streams.limit_s) / self._policy.hope, self._now_s)
        self._limit_s, self._relaxed_s = streams.limit_s, streams.relaxed_s
        self._grants.update(dict.fromkeys([w.request_id for w in streams.served], 1))
        if self._docket.drafting:
            self._serve_all_drafts([w for w in streams.served if w.draft_tokens > 0 and w.decoding], self._limit_s)
        if self._docket.best_effort and not in_need:
            self._serve_hopeful(prefills)
            prefills = self._joined_by_hopeful(prefills)
            if prefills:
                others = [w for w in self._docket.best_effort if w.running and w.decoding and w.pending_tokens == 1]
                others = [w for w in others if w.request_id not in self._grants]
                self._beside_s = time_beside(prefills, others, self._meter, self._limit_s, self._relaxed_s, self._now_s)
        full = False
        for prefill in late_ones_first(prefills, self._share_left(self._limit_s), self._now_s):
            limit_s = self._limit_s if in_need and not prefill.late else self._relaxed_s - self._beside_s
            if prefill.work.pulls_kv:
                self._let_in(prefill.work, prefill.late)
            elif not full and not self._serve_promised_prefill(prefill.work, prefill.late, limit_s):
                full = self._is_full(limit_s)
        for w in streams.held if not self._is_full(self._limit_s) else ():
            self._serve_stream(w, self._limit_s)

    def _serve_hopeful(self, prefills: Sequence[Prefill]) -> None:
        """Streams of best effort whose contract is kept so far, and the bound that they need, unless a promised prompt
        would be short of time for it or promised streams late.
        """
        now_s, meter, buffer = self._now_s, self._meter, self._policy.buffer
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        works, took_s = self._still_there(self._docket.hopeful), 0.0
        while works:
            took_s = meter.with_decode_s(sum([w.computed_tokens for w in works]), len(works))
            in_time = [w for w in works if w.due_s >= now_s + took_s]
            if len(in_time) == len(works):
                break
            works = in_time
        if not works or took_s > self._limit_s or len(works) > self._room():
            return
        if not self._memory.has_room(works, waiting):
            return
        wanted_s = min([w.due_s - now_s - (buffer * w.tpot_s if w.tpot_s < math.inf else 0.0) for w in works])
        limit_s = min(self._relaxed_s, max(took_s, min(wanted_s, *[w.tpot_s for w in works])))
        if limit_s <= 0 or short_of_time(prefills, (1 - SPARE) * (1 - took_s / limit_s), now_s):
            return
        self._relaxed_s = limit_s
        meter.add_decodes(len(works), sum([w.computed_tokens for w in works]))
        for w in works:
            self._memory.take(w, 1)
            self._grants[w.request_id] = 1
        if self._docket.drafting and not waiting:
            self._serve_all_drafts([w for w in works if w.draft_tokens > 0], limit_s)

    def _joined_by_hopeful(self, prefills: list[Prefill]) -> list[Prefill]:
        """Prompts of best effort that may be in time take their turn among promised ones that have time to spare."""
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        if not prefills or not self._memory.has_room((), waiting):
            return prefills
        hopeful = []
        for each in self._hopeful_prefills()[:MOST_HOPEFUL]:
            if each.late:
                break
            if each.work.running:
                hopeful.append(each)
            elif self._memory.has_room((), [*waiting, each.work]):
                hopeful.append(each)
                waiting.append(each.work)
        if not hopeful:
            return prefills
        return with_hopeful(prefills, hopeful, (1 - SPARE) * self._share_left(self._relaxed_s), self._now_s)

    def _hopeful_prefills(self) -> list[Prefill]:
        """Of best effort that may be in time; those that others would not be for are late."""
        works = [w for w in self._docket.best_effort if w.due_s < math.inf and not w.decoding and not w.pulls_kv]
        prefills = [each for each in self._by_deadline(works) if not each.late] if works else []
        if len(prefills) < 2:
            return prefills
        return most_in_time(prefills, self._share_left(self._relaxed_s) / self._policy.hope, self._now_s)

    def _by_deadline(self, works: Sequence[Work]) -> list[Prefill]:
        return by_deadline(works, self._meter, self._limits.max_step_tokens, self._now_s, self._policy.hope)

    def _share_left(self, limit_s: float) -> float:
        """Of the time of a step of that length, what the streams leave."""
        return 1 - self._meter.seconds() / limit_s if limit_s > 0 else 0.0

    def _still_there(self, works: Sequence[Work]) -> Sequence[Work]:
        """Without those that have been preempted."""
        if not self._memory.preempted:
            return works
        gone = {w.request_id for w in self._memory.preempted}
        return [w for w in works if w.request_id not in gone]

    def _memory_binds(self, prefills: Sequence[Prefill]) -> bool:
        """One cannot be let in: a stream gives its memory back the sooner, the less it is held."""
        waiting = [prefill.work for prefill in prefills if not prefill.work.running]
        largest = max(waiting, key=lambda w: w.computed_tokens + w.pending_tokens, default=None)
        return largest is not None and not self._memory.could_admit(largest)

    def _is_full(self, limit_s: float) -> bool:
        """Whether nothing more fits the step."""
        least_s = min(self._meter.with_decode_s(0), self._meter.with_prefill_s(1, 0))
        return self._room() < 1 or least_s > limit_s

    def _room(self) -> int:
        """Tokens for which the step has room, time apart."""
        return self._limits.max_step_tokens - self._meter.tokens

    def _chunk(self, work: Work, limit_s: float) -> int:
        """The chunk of a prefill for which the step has room."""
        tokens = min(work.pending_tokens, self._room())
        return self._meter.chunk(tokens, work.computed_tokens, limit_s) if tokens > 0 else 0

    def _serve_stream(self, work: Work, limit_s: float, give_way: bool = False) -> None:
        """One token, and drafts; `give_way`: best effort that came later gives up its KV for it."""
        meter, context_tokens = self._meter, work.computed_tokens
        took_s = meter.with_decode_s(context_tokens) if work.decoding else meter.with_prefill_s(1, context_tokens)
        if took_s > limit_s or self._room() < 1:
            return
        memory = self._memory
        if not memory.take(work, 1) and not (give_way and memory.take(work, 1, memory.juniors(work, self._grants))):
            return
        self._grants[work.request_id] = 1
        if work.decoding:
            meter.add_decodes(1, context_tokens)
            if work.draft_tokens > 0:
                self._serve_drafts(work, limit_s)
        else:
            meter.add_prefill(1, context_tokens)

    def _add_prefill(self, work: Work, tokens: int) -> int:
        """Returns the tokens for which there is memory, which are those granted."""
        tokens = self._memory.use_reserved(work, tokens)
        if tokens > 0:
            self._meter.add_prefill(tokens, work.computed_tokens)
            self._grants[work.request_id] = tokens
        return tokens

    def _serve_all_drafts(self, works: Sequence[Work], limit_s: float) -> None:
        """Those of streams in the step; one look tells whether they all fit, as they nearly always do."""
        if not works:
            return
        tokens, longest = sum([w.draft_tokens for w in works]), max([w.draft_tokens for w in works])
        fits = tokens <= self._room() and self._meter.with_drafts_s(tokens, longest) <= limit_s
        if fits and self._memory.take_drafts(works):
            self._meter.add_drafts(tokens, longest)
            self._grants.update({w.request_id: 1 + w.draft_tokens for w in works})
            return
        for w in sorted(works, key=lambda w: w.due_s):
            self._serve_drafts(w, limit_s)

    def _serve_drafts(self, work: Work, limit_s: float) -> None:
        """Of a decode in the step; nobody gives anything up for them."""
        tokens = self._meter.drafts(min(work.draft_tokens, self._room()), limit_s)
        while tokens > 0 and not self._memory.take(work, 1 + tokens):
            tokens -= 1
        if tokens > 0:
            self._meter.add_drafts(tokens, tokens)
            self._grants[work.request_id] += tokens

    def _serve_promised_prefill(self, work: Work, late: bool, limit_s: float) -> bool:
        """False if the step has no room for any of it, or there is no memory."""
        tokens = self._chunk(work, limit_s)
        if tokens < 1 or not (work.running or self._let_in(work, late)):
            return False
        if self._add_prefill(work, tokens) == work.pending_tokens and not (late or work.best_effort):
            # One that is in time only if all goes well ends its step: nothing more is put into it.
            due_in_s = max(self._meter.seconds(), work.due_s - self._now_s)
            self._limit_s, self._relaxed_s = min(self._limit_s, due_in_s), min(self._relaxed_s, due_in_s)
        return True

    def _let_in(self, work: Work, late: bool) -> bool:
        """Whether there is memory. One that can be in time is not overtaken to it; one that is late stops nobody."""
        admit = self._memory.admit if work.best_effort else self._memory.admit_promised
        if not self._crowded and admit(work):
            self._admitted.append(work.request_id)
            return True
        self._crowded = self._crowded or not (late or work.best_effort)
        return False

    def _serve_best_effort(self) -> None:
        """What is left to those whose contract may still be kept, by due time and length; then to the others, shortest
        first, with ageing. Streams of best effort are as short as can be.
        """
        limit_s = self._relaxed_s
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
                self._serve_stream(w, limit_s, give_way=True)
                self._extend_prefills(limit_s)
            else:
                self._add_prefill(w, self._chunk(w, limit_s))

    def _ranks(self, works: Sequence[Work]) -> list[Work]:
        """Best effort in the order in which it is served."""
        policy, token_s = self._policy, self._meter.prefill_s(1, 0)
        hopeful = {each.request_id: index for index, each in enumerate(self._hopeful_prefills())}

        def rank(work: Work) -> tuple[bool, float, str]:
            index = hopeful.get(work.request_id)
            if index is not None:
                return False, float(index), ""
            if work.due_s < math.inf and work.pending_tokens == 1:
                return False, -1.0, work.request_id
            return True, work.pending_tokens * token_s + policy.ageing * work.waiting_since_s, work.request_id

        return sorted(works, key=rank)

    def _serve_streams_at_once(self) -> list[Work]:
        """All streams of best effort if they take no room worth arguing about; returns what is left to serve."""
        best_effort, memory = self._docket.best_effort, self._memory
        grants = self._grants
        at_once = [
            w
            for w in self._still_there(best_effort)
            if w.decoding and w.running and not w.draft_tokens and w.request_id not in grants
        ]
        context_tokens = sum([w.computed_tokens for w in at_once])
        before_s = self._meter.seconds() if self._meter.tokens else 0.0
        more_s = self._meter.with_decode_s(context_tokens, len(at_once)) - before_s
        left_s = self._relaxed_s - before_s
        if (
            more_s > min(left_s, max(left_s / 2, self._beside_s))
            or len(at_once) > self._room() / 2
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
        for w in self._docket.prefills:
            granted = self._grants.get(w.request_id, 0)
            context_tokens = w.computed_tokens + granted
            left = min(w.pending_tokens - granted, self._room())
            if granted and left > 0:
                more = self._meter.chunk(left, context_tokens, limit_s)
                more = self._memory.use_reserved(w, granted + more) - granted
                if more > 0:
                    self._meter.extend_prefill(more, context_tokens)
                    self._grants[w.request_id] += more

    def _serve_waiting(self, work: Work, limit_s: float) -> None:
        """Whoever has come to the front is not overtaken to the memory that it waits for."""
        tokens = 0 if work.pulls_kv else self._chunk(work, limit_s)
        if self._crowded or (tokens < 1 and not work.pulls_kv):
            return
        if not self._memory.admit(work):
            self._crowded = True
            return
        self._admitted.append(work.request_id)
        if tokens:
            self._add_prefill(work, tokens)

    def _serve_anyone(self, works: Sequence[Work]) -> None:
        """Nothing fitted the bound, and no promise set it: the first that can run gets as little as there is."""
        for w in sorted((w for w in self._still_there(works) if not w.pulls_kv), key=lambda w: not w.running):
            if not w.running:
                if not self._memory.admit(w):
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
        docket, grants = self._docket, self._grants
        runnable = docket.running - docket.pulling
        served = len(grants) - sum(request_id in grants for request_id in self._admitted)
        if served + len(self._memory.preempted) == runnable:
            return ()
        works = self._still_there([*docket.streams, *docket.prefills, *docket.best_effort])
        return tuple([w.request_id for w in works if w.running and w.request_id not in grants])
