"""The choice of the promised streams that get a token in a step, and how long the step may take for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.slo.composer.kv_budget import KvBudget
from services.slo.composer.request_queues import RequestQueues
from services.slo.composer.step import ComposerPolicy, Limits, SchedulableRequest
from services.slo.composer.step_meter import StepMeter
from services.slo.due_times import LONGEST_GAP_TPOTS


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of a step and the limits they set to it; limits are seconds from the beginning of the step."""

    served: list[SchedulableRequest]
    """Streams that get a token."""
    held: list[SchedulableRequest]
    """Streams that skip the step because they can wait, lack a block, or find the step full of tokens."""
    due_s: float
    """Time until the first of the served streams is late; infinite if none is in time."""
    buffered_due_s: float
    """Time until the first due time less its stream's buffer (`ComposerPolicy.buffer_tpots`); may be negative."""
    cap_s: float = math.inf
    """Longest step that leaves a newcomer as tight as the tightest stream in time, whenever the streams are due."""

    @property
    def limit_s(self) -> float:
        """Longest step with every stream in time."""
        return min(self.due_s, self.cap_s)

    @property
    def buffered_limit_s(self) -> float:
        """Longest step that leaves every stream its buffer."""
        return min(self.buffered_due_s, self.due_s, self.cap_s)

    @property
    def extended_limit_s(self) -> float:
        """Longest step for a prompt that would be late otherwise, with every stream in time."""
        return min(self.due_s, LONGEST_GAP_TPOTS * self.cap_s)

    @property
    def extended_buffered_limit_s(self) -> float:
        """Longest step for a prompt that would be late otherwise, with every stream's buffer left."""
        return min(self.buffered_due_s, self.extended_limit_s)


class StreamSelector:
    """Chooses the `Streams` of a step, and leaves the meter with those that are served."""

    def __init__(
        self,
        queues: RequestQueues,
        meter: StepMeter,
        kv: KvBudget,
        policy: ComposerPolicy,
        limits: Limits,
        now_s: float,
    ) -> None:
        """
        Args:
            now_s: when the step begins, the policy's reserve included.
        """
        self._queues = queues
        self._meter = meter
        self._kv = kv
        self._policy = policy
        self._limits = limits
        self._now_s = now_s

    def select(self) -> Streams:
        """Serve all streams, or hold back those that can wait if some would be late with all of them."""
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
            streams = Streams(served, [], queues.earliest_due_s - now_s, queues.buffered_due_s - now_s)
        else:
            streams = self._hold_patient(served, held, all_s)
        return self._capped(streams)

    def joined(self, streams: Streams, works: Sequence[SchedulableRequest]) -> Streams:
        """Add streams of best effort, all of which are in time after a step with all of them."""
        meter = self._meter
        meter.add_decodes(len(works), sum([w.computed_tokens for w in works]))
        took_s = meter.seconds()
        in_s = self._due_in_s(works, took_s)
        tightest_tpot_s = min([math.inf, *[w.tpot_s for w in works if not w.draft_tokens]])
        return Streams(
            [*streams.served, *works],
            streams.held,
            min(streams.due_s, *in_s),
            min(streams.buffered_due_s, *self._less_buffers_s(works, in_s)),
            min(streams.cap_s, max(tightest_tpot_s, self._policy.decode_step_multiple * took_s)),
        )

    def holding_those_that_can_wait(self, streams: Streams, prefills_s: float) -> Streams:
        """Hold back every stream that is in time, with its buffer, in the step after one with these prefills.

        One is served all the same: a step of prefills alone is of a kind that this engine may know little about.

        Args:
            prefills_s: what the prefills of the step take.
        """
        all_s = self._meter.seconds()
        in_s = self._less_buffers_s(streams.served, self._due_in_s(streams.served, 0.0))
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
            buffered_due_s=min(streams.buffered_due_s, last_s),
        )

    def _hold_patient(self, served: list[SchedulableRequest], held: list[SchedulableRequest], all_s: float) -> Streams:
        """Hold back the streams that can wait for the next step, where some would be late if all were served.

        A stream that is late all the same bounds nothing.

        Args:
            held: streams that are held already.
            all_s: time of a step with all of `served`.
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
                return self._limited(must, held, self._meter.seconds())
            self._measure(served)
        return self._limited(served, held, all_s)

    def _limited(self, served: list[SchedulableRequest], held: list[SchedulableRequest], step_s: float) -> Streams:
        """Return the streams with the limits set by those of `served` that are in time after a step of `step_s`."""
        in_s = self._due_in_s(served, step_s)
        in_time = [
            (left_s, buffered_s)
            for left_s, buffered_s in zip(in_s, self._less_buffers_s(served, in_s), strict=True)
            if left_s >= step_s
        ]
        if not in_time:
            return Streams(served, held, math.inf, math.inf)
        return Streams(served, held, min(in_time)[0], min([buffered_s for _, buffered_s in in_time]))

    def _capped(self, streams: Streams) -> Streams:
        """Cap the step so that a newcomer as tight as the tightest is not stuck, unless nothing else would get on.

        A promise that there is goes before a newcomer that there may be, but no stream is to pause longer than it may.
        """
        meter, policy = self._meter, self._policy
        cap_s = policy.longest_step_s(meter.shortest_step_s())
        if streams.served:
            cap_s = min(cap_s, policy.step_cap_s, self._queues.tightest_tpot_s)
            cap_s = max(cap_s, policy.decode_step_multiple * meter.seconds())
        return replace(streams, cap_s=cap_s)

    def _due_in_s(self, streams: Sequence[SchedulableRequest], step_s: float) -> list[float]:
        """Return the time left until each stream should have its token.

        That is the time for an even stream where a step of `step_s` can still meet it, else the due time.
        """
        now_s = self._now_s
        end_s = now_s + step_s
        return [(w.wanted_s if end_s <= w.wanted_s < w.due_s else w.due_s) - now_s for w in streams]

    def _less_buffers_s(self, streams: Sequence[SchedulableRequest], in_s: Sequence[float]) -> list[float]:
        """Return these times, each earlier by the buffer of its stream."""
        buffer_tpots = self._policy.buffer_tpots
        return [
            left_s - buffer_tpots * w.tpot_s if w.tpot_s < math.inf else left_s
            for w, left_s in zip(streams, in_s, strict=True)
        ]

    def _measure(self, streams: Sequence[SchedulableRequest]) -> None:
        """Set the meter to a step of one token of each of these streams."""
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
        """Return the streams for whose next token there are a block and a token of the step, and the others.

        Blocks that are too few go to the streams due first.
        """
        kv = self._kv
        served: list[SchedulableRequest] = []
        held: list[SchedulableRequest] = []
        streams = self._queues.streams
        if len(streams) <= self._limits.max_step_tokens and kv.take_all(self._queues.lacking_block):
            return streams, held
        in_order = sorted(streams, key=_due)
        gone: set[str] = set()
        for position, w in enumerate(in_order):
            if w.request_id in gone:
                continue
            if len(served) == self._limits.max_step_tokens:
                held.append(w)
                continue
            if kv.take(w, 1):
                served.append(w)
            elif kv.take(w, 1, [*self._preemptible_later(w, in_order[position + 1 :], gone), *kv.best_effort()]):
                gone.update(other.request_id for other in kv.preempted)
                served.append(w)
            else:
                held.append(w)
        return served, held

    def _preemptible_later(
        self, work: SchedulableRequest, streams: Sequence[SchedulableRequest], gone: set[str]
    ) -> list[SchedulableRequest]:
        """Return promised work due after `work` that can be preempted for it: streams, then prefills, the first to go
        last.
        """
        prefills = sorted((w for w in self._queues.prefills if w.running), key=_due)
        return [w for w in (*streams, *prefills) if not w.pinned and w.request_id not in gone and _due(w) > _due(work)]


def _due(work: SchedulableRequest) -> tuple[float, str]:
    return (work.due_s, work.request_id)
