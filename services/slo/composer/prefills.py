"""Prefills in the order in which a step serves them, and which of them can meet their deadline."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.slo.composer.step import SchedulableRequest
from services.slo.composer.step_meter import StepMeter

SPARE_FRACTION = 0.25
"""Fraction of the time of the prefills that can be in time which must be spare before a late prefill goes first, or
before a prompt of best effort goes among promised ones. It covers the overhead of their steps (chosen, not
measured)."""


class Headroom(NamedTuple):
    """The time that streams leave to prefills, counted in whole steps, because what a step computes comes at its end.

    All times are seconds.
    """

    first_step_s: float
    """Length of the step that is being composed."""
    step_s: float
    """Length of each step after it."""
    streams_s: float
    """Part of each step that its streams, and the overhead of the step, take."""
    skipped_s: float = 0.0
    """Part of `streams_s` that is free in the first step because streams skip it."""

    def until(self, left_s: float) -> float:
        """Return what prefills get in the steps that end within `left_s`.

        Returns:
            Seconds; not positive if no step ends in time, or streams take all of each.
        """
        streams_s = self.streams_s
        first_step_s = max(self.first_step_s, streams_s)
        if left_s <= first_step_s:
            return left_s - streams_s + self.skipped_s
        headroom_s, left_s = first_step_s - streams_s + self.skipped_s, left_s - first_step_s
        if self.step_s > streams_s:
            whole = left_s // self.step_s
            headroom_s += whole * (self.step_s - streams_s) + max(0.0, left_s - whole * self.step_s - streams_s)
        return headroom_s


class Prefill(NamedTuple):
    """A prefill in order of service: by deadline, but what is late in any case after what can be in time."""

    late: bool
    """Whether the prefill would be late even if the engine did nothing else and its steps went well, or was given up so
    that others can be in time."""
    due_s: float
    """Time by which its first token is promised."""
    waiting_since_s: float
    request_id: str
    compute_s: float
    """Predicted time that it takes besides the overhead of its steps; 0 until its KV is pulled."""
    work: SchedulableRequest
    """The request itself."""


def by_deadline(
    works: Iterable[SchedulableRequest], meter: StepMeter, max_step_tokens: int, now_s: float, best_case_fraction: float
) -> list[Prefill]:
    """Return these prefills in order of service; `best_case_fraction` is that of `StepMeter`."""
    overhead_s = meter.overhead_s()
    prefills = []
    for w in works:
        compute_s = steps_s = 0.0
        if not w.pulls_kv:
            compute_s = meter.prefill_s(w.pending_tokens, w.computed_tokens)
            steps_s = overhead_s * -(-w.pending_tokens // max_step_tokens)
        late = now_s + best_case_fraction * (compute_s + steps_s) > w.due_s
        prefills.append(Prefill(late, w.due_s, w.waiting_since_s, w.request_id, compute_s, w))
    return sorted(prefills)


def late_ones_first(prefills: list[Prefill], headroom: Headroom, now_s: float) -> list[Prefill]:
    """Move late prefills to the front, as many as leave all others in time.

    A broken promise is still made good as soon as that breaks no other.

    Args:
        prefills: in the order of `by_deadline`.
    """
    late = [prefill for prefill in prefills if prefill.late]
    if not late:
        return prefills
    in_time = prefills[: len(prefills) - len(late)]
    compute_s, spare_s = 0.0, math.inf
    for prefill in in_time:
        compute_s += prefill.compute_s
        spare_s = min(spare_s, headroom.until(prefill.due_s - now_s) - compute_s)
    first = 0
    for prefill in late:
        spare_s -= prefill.compute_s
        if spare_s < SPARE_FRACTION * compute_s:
            break
        first += 1
    return [*late[:first], *in_time, *late[first:]]


def short_of_time(prefills: Sequence[Prefill], headroom: Headroom, now_s: float, fraction: float = 1.0) -> bool:
    """Return whether a prefill that can be in time would be late if prefills got this fraction of the headroom."""
    compute_s = 0.0
    for prefill in prefills:
        if prefill.due_s == math.inf:
            break
        if prefill.late:
            continue
        compute_s += prefill.compute_s
        if compute_s > fraction * headroom.until(prefill.due_s - now_s):
            return True
    return False


def most_in_time(prefills: list[Prefill], headroom: Headroom, now_s: float, best_case_fraction: float) -> list[Prefill]:
    """Give up the longest prefills as late until all others can be in time together.

    This is Moore and Hodgson's rule, which keeps as many as possible: in order of deadlines, whenever one would be
    late, the longest so far is given up. By deadline alone each late prefill would make the next one late.

    Args:
        prefills: in the order of `by_deadline`.
        best_case_fraction: that of `StepMeter`.
    """
    compute_s = 0.0
    longest: list[tuple[float, str]] = []
    given_up: set[str] = set()
    for prefill in prefills:
        if prefill.late or prefill.due_s == math.inf:
            break
        compute_s += prefill.compute_s
        heapq.heappush(longest, (-prefill.compute_s, prefill.request_id))
        while compute_s > max(0.0, headroom.until((prefill.due_s - now_s) / best_case_fraction)):
            negative_s, request_id = heapq.heappop(longest)
            compute_s = compute_s + negative_s if longest else 0.0
            given_up.add(request_id)
    if not given_up:
        return prefills
    return sorted([each._replace(late=each.late or each.request_id in given_up) for each in prefills])


def with_attainable(
    prefills: list[Prefill], attainable: Iterable[Prefill], headroom: Headroom, extended: Headroom, now_s: float
) -> list[Prefill]:
    """Insert prefills of best effort by deadline, as far as every promised prefill is in time all the same.

    Args:
        prefills: in the order of `by_deadline`, none of them short of time.
        attainable: best effort that can be in time, in the order in which it is to be tried.
        headroom: promised prefills must be in time in all of it but `SPARE_FRACTION`.
        extended: best effort must be in time in all of it.
    """
    merged = prefills
    for candidate in attainable:
        trial = sorted([*merged, candidate])
        compute_s, fits = 0.0, True
        for each in trial:
            if each.late or each.due_s == math.inf:
                break
            compute_s += each.compute_s
            if each.due_s < candidate.due_s:
                continue
            left_s = each.due_s - now_s
            enough_s = (
                extended.until(left_s) if each.work.best_effort else (1 - SPARE_FRACTION) * headroom.until(left_s)
            )
            if compute_s > enough_s:
                fits = False
                break
        if fits:
            merged = trial
    return merged


def rescued_by_skipping_s(prefills: Sequence[Prefill], headroom: Headroom, now_s: float) -> float:
    """Return how long the prefills take, up to the last that is in time only if streams skip the first step.

    Args:
        headroom: as it is if streams skip.

    Returns:
        Seconds of prefill; 0 if skipping brings none in time.
    """
    compute_s, needed_s = 0.0, 0.0
    for prefill in prefills:
        if prefill.late or prefill.due_s == math.inf:
            break
        compute_s += prefill.compute_s
        if 0 < compute_s - headroom.until(prefill.due_s - now_s) + headroom.skipped_s <= headroom.skipped_s:
            needed_s = compute_s
    return needed_s


def best_effort_decode_s(
    prefills: Sequence[Prefill],
    streams: Iterable[SchedulableRequest],
    meter: StepMeter,
    limit_s: float,
    buffered_limit_s: float,
    now_s: float,
) -> float:
    """Return the time of the step that streams of best effort get before promised prefills, which stay in time.

    Without it prefills that follow one another would leave those streams nothing. The oldest streams are counted, in
    half of the time that promised streams leave.

    Args:
        streams: of best effort.
        limit_s, buffered_limit_s: as in `Streams`.
    """
    before_s = meter.seconds() if meter.tokens else 0.0
    decode_s, context_tokens = 0.0, 0
    if limit_s <= 0:
        return decode_s
    for number, w in enumerate(sorted(streams, key=lambda w: w.waiting_since_s), 1):
        context_tokens += w.computed_tokens
        trial_s = meter.decodes_s(context_tokens, number)
        headroom = Headroom(limit_s, limit_s, before_s + trial_s)
        if trial_s > (buffered_limit_s - before_s) / 2 or short_of_time(prefills, headroom, now_s):
            break
        decode_s = trial_s
    return decode_s
