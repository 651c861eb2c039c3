"""Which promised streams get their token in a step, and how long the step may take for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.slo.composer.memory import Memory
from services.slo.composer.request_queues import RequestQueues
from services.slo.composer.step import ComposerPolicy, Limits, SchedulableRequest
from services.slo.composer.step_meter import StepMeter
from services.slo.due_times import LONGEST_GAP_TPOTS


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of a step. Its bounds are durations from now."""

    served: list[SchedulableRequest]
    held: list[SchedulableRequest]
    """Those that can wait, or must, for want of a block or because the step is full of tokens."""
    due_s: float
    """The first of them is late after this."""
    buffered_s: float
    """Seconds until the first due time less its stream's buffer (`ComposerPolicy.buffer_tpots`); may be negative."""
    cap_s: float = math.inf
    """The step had better not be longer, whenever they are due; twice as long if a prompt would be late otherwise."""

    @property
    def limit_s(self) -> float:
        return min(self.due_s, self.cap_s)

    @property
    def buffered_limit_s(self) -> float:
        return min(self.buffered_s, self.due_s, self.cap_s)

    @property
    def extended_limit_s(self) -> float:
        return min(self.due_s, LONGEST_GAP_TPOTS * self.cap_s)

    @property
    def extended_buffered_limit_s(self) -> float:
        return min(self.buffered_s, self.extended_limit_s)


class StreamSelector:
    """Finds `Streams`; `now_s` includes the reserve of the policy."""

    def __init__(
        self,
        queues: RequestQueues,
        meter: StepMeter,
        memory: Memory,
        policy: ComposerPolicy,
        limits: Limits,
        now_s: float,
    ) -> None:
        self._queues = queues
        self._meter = meter
        self._memory = memory
        self._policy = policy
        self._limits = limits
        self._now_s = now_s

    def bound(self) -> Streams:
        """Serve all of them, if that is possible; the meter is left with those that are served."""
        queues, now_s = self._queues, self._now_s
        if not queues.streams:
            return self._capped(Streams([], [], math.inf, math.inf))
        if queues.lacking_block or len(queues.streams) > self._limits.max_step_tokens:
            served, held = self._with_memory()
        else:
            served, held = queues.streams, []
        self._measure(served)
        all_s = self._meter.seconds()
        if not held and all_s <= queues.earliest_due_s - now_s:
            streams = Streams(served, [], queues.earliest_due_s - now_s, queues.buffered_s - now_s)
        else:
            streams = self._hold_back(served, held, all_s)
        return self._capped(streams)

    def joined(self, streams: Streams, works: Sequence[SchedulableRequest]) -> Streams:
        """With these as well, which can all be in time after a step with all of them."""
        meter = self._meter
        meter.add_decodes(len(works), sum([w.computed_tokens for w in works]))
        took_s = meter.seconds()
        in_s = self._due_in_s(works, took_s)
        tightest_tpot_s = min([math.inf, *[w.tpot_s for w in works if not w.draft_tokens]])
        return Streams(
            [*streams.served, *works],
            streams.held,
            min(streams.due_s, *in_s),
            min(streams.buffered_s, *self._buffered_s(works, in_s)),
            min(streams.cap_s, max(tightest_tpot_s, self._policy.decode_step_multiple * took_s)),
        )

    def holding_those_that_can_wait(self, streams: Streams, prefills_s: float) -> Streams:
        """Hold back every stream whose token can still be made in time, with its buffer, in the step after one with
        these prefills.

        Not the last one, however: a step of prefills alone is of a kind that this engine may know little about.
        """
        all_s = self._meter.seconds()
        in_s = self._buffered_s(streams.served, self._due_in_s(streams.served, 0.0))
        patience_s = self._meter.shortest_step_s() + prefills_s + all_s
        # Those that are in the step make it longer than that.
        self._measure([w for w, left_s in zip(streams.served, in_s, strict=True) if left_s < patience_s])
        patience_s = self._meter.seconds() + prefills_s + all_s
        served = [w for w, left_s in zip(streams.served, in_s, strict=True) if left_s < patience_s]
        held = [w for w, left_s in zip(streams.served, in_s, strict=True) if left_s >= patience_s]
        if not held:
            self._measure(streams.served)
            return streams
        if not served:
            served.append(held.pop(min(range(len(held)), key=in_s.__getitem__)))
        self._measure(served)
        last_s = min([left_s for left_s in in_s if left_s >= patience_s]) - all_s
        return replace(
            streams,
            served=served,
            held=[*streams.held, *held],
            due_s=min(streams.due_s, last_s),
            buffered_s=min(streams.buffered_s, last_s),
        )

    def _hold_back(self, served: list[SchedulableRequest], held: list[SchedulableRequest], all_s: float) -> Streams:
        """Where one is late, or would be if all were served: hold back those that can wait.

        What is late all the same bounds nothing.
        """
        one_s = self._meter.shortest_step_s()
        in_s = self._due_in_s(served, one_s)
        earliest_s = min([left_s for left_s in in_s if left_s >= one_s], default=math.inf)
        if earliest_s < all_s:
            patience_s = earliest_s + all_s
            must = [w for w, left_s in zip(served, in_s, strict=True) if left_s < patience_s]
            self._measure(must)
            if self._meter.seconds() <= earliest_s:
                held = [*held, *(w for w, left_s in zip(served, in_s, strict=True) if left_s >= patience_s)]
                return self._relaxed(must, held, self._meter.seconds())
            self._measure(served)
        return self._relaxed(served, held, all_s)

    def _relaxed(self, served: list[SchedulableRequest], held: list[SchedulableRequest], step_s: float) -> Streams:
        """The bounds set by those of `served` that are in time after a step of that length."""
        in_s = self._due_in_s(served, step_s)
        in_time = [
            (left_s, buffered_s)
            for left_s, buffered_s in zip(in_s, self._buffered_s(served, in_s), strict=True)
            if left_s >= step_s
        ]
        if not in_time:
            return Streams(served, held, math.inf, math.inf)
        return Streams(served, held, min(in_time)[0], min([buffered_s for _, buffered_s in in_time]))

    def _capped(self, streams: Streams) -> Streams:
        """Never so long that a newcomer as tight as the tightest would be stuck, unless nothing else got on.

        A promise that there is goes before a newcomer that there may be, but no stream is to pause longer than it may.
        """
        meter, policy = self._meter, self._policy
        cap_s = policy.longest_step_s(meter.shortest_step_s())
        if streams.served:
            cap_s = max(
                min(cap_s, policy.step_cap_s, self._queues.tightest_tpot_s),
                policy.decode_step_multiple * meter.seconds(),
            )
        return replace(streams, cap_s=cap_s)

    def _due_in_s(self, streams: Sequence[SchedulableRequest], step_s: float) -> list[float]:
        """Time left until their tokens should come: for an even stream, if a step of that length allows, else due."""
        now_s = self._now_s
        end_s = now_s + step_s
        return [(w.wanted_s if end_s <= w.wanted_s < w.due_s else w.due_s) - now_s for w in streams]

    def _buffered_s(self, streams: Sequence[SchedulableRequest], in_s: Sequence[float]) -> list[float]:
        """These times, each earlier by the buffer of its stream."""
        buffer_tpots = self._policy.buffer_tpots
        return [
            left_s - buffer_tpots * w.tpot_s if w.tpot_s < math.inf else left_s
            for w, left_s in zip(streams, in_s, strict=True)
        ]

    def _measure(self, streams: Sequence[SchedulableRequest]) -> None:
        meter = self._meter
        meter.clear()
        if streams is self._queues.streams:
            decodes, context_tokens = self._queues.decodes, self._queues.context_tokens
        else:
            contexts = [w.computed_tokens for w in streams if w.decoding]
            decodes, context_tokens = len(contexts), sum(contexts)
        meter.add_decodes(decodes, context_tokens)
        if decodes < len(streams):
            for w in streams:
                if not w.decoding:
                    meter.add_prefill(1, w.computed_tokens)

    def _with_memory(self) -> tuple[list[SchedulableRequest], list[SchedulableRequest]]:
        """Those for which there are a block and a token of the step, and the others; by due time if there are any."""
        memory = self._memory
        served: list[SchedulableRequest] = []
        held: list[SchedulableRequest] = []
        streams = self._queues.streams
        if len(streams) <= self._limits.max_step_tokens and memory.take_all(self._queues.lacking_block):
            return streams, held
        in_order = sorted(streams, key=_due)
        gone: set[str] = set()
        for position, w in enumerate(in_order):
            if w.request_id in gone:
                continue
            if len(served) == self._limits.max_step_tokens:
                held.append(w)
                continue
            if memory.take(w, 1):
                served.append(w)
            elif memory.take(
                w, 1, [*self._preemptible_later(w, in_order[position + 1 :], gone), *memory.best_effort()]
            ):
                gone.update(other.request_id for other in memory.preempted)
                served.append(w)
            else:
                held.append(w)
        return served, held

    def _preemptible_later(
        self, work: SchedulableRequest, streams: Sequence[SchedulableRequest], gone: set[str]
    ) -> list[SchedulableRequest]:
        """Promised work that can give way to `work`, the first to do so last: prefills, then streams, due later."""
        prefills = sorted((w for w in self._queues.prefills if w.running), key=_due)
        return [w for w in (*streams, *prefills) if not w.pinned and w.request_id not in gone and _due(w) > _due(work)]


def _due(work: SchedulableRequest) -> tuple[float, str]:
    return (work.due_s, work.request_id)
