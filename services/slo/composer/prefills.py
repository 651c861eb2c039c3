"""Promised prefills, in the order in which a step serves them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.slo.composer.step import SchedulableRequest
from services.slo.composer.step_meter import StepMeter

SPARE_FRACTION = 0.25
"""Of what prefills take that can be in time, kept for the overhead of their steps before a late one goes first."""


class Headroom(NamedTuple):
    """The time that prefills can have beside streams, step by step: whatever a step computes comes at its end."""

    first_step_s: float
    """Length of the step to compose."""
    step_s: float
    """Of those after it."""
    beside_s: float
    """What streams, and the step itself, take of each."""
    skipped_s: float = 0.0
    """Of that, what streams leave that sit the first step out."""

    def until(self, left_s: float) -> float:
        """What prefills get in steps that all end in that time; at most 0 if no step does, or streams take all."""
        beside_s = self.beside_s
        first_step_s = max(self.first_step_s, beside_s)
        if left_s <= first_step_s:
            return left_s - beside_s + self.skipped_s
        headroom_s, left_s = first_step_s - beside_s + self.skipped_s, left_s - first_step_s
        if self.step_s > beside_s:
            whole = left_s // self.step_s
            headroom_s += whole * (self.step_s - beside_s) + max(0.0, left_s - whole * self.step_s - beside_s)
        return headroom_s


class Prefill(NamedTuple):
    """By deadline; those that are late in any case after those that can be in time."""

    late: bool
    """It could not be in time even if the engine did nothing else and its steps went well; or others go before it."""
    due_s: float
    waiting_since_s: float
    request_id: str
    took_s: float
    """What it takes besides the overhead of its steps; 0 until its KV is pulled."""
    work: SchedulableRequest


def by_deadline(
    works: Iterable[SchedulableRequest], meter: StepMeter, max_step_tokens: int, now_s: float, best_case_fraction: float
) -> list[Prefill]:
    """Promised work that is no stream; `best_case_fraction` as in `ComposerPolicy`."""
    overhead_s = meter.overhead_s()
    prefills = []
    for w in works:
        took_s = steps_s = 0.0
        if not w.pulls_kv:
            took_s = meter.prefill_s(w.pending_tokens, w.computed_tokens)
            steps_s = overhead_s * -(-w.pending_tokens // max_step_tokens)
        late = now_s + best_case_fraction * (took_s + steps_s) > w.due_s
        prefills.append(Prefill(late, w.due_s, w.waiting_since_s, w.request_id, took_s, w))
    return sorted(prefills)


def late_ones_first(prefills: list[Prefill], headroom: Headroom, now_s: float) -> list[Prefill]:
    """Late ones before those that can be in time, as many as leave these in time: a broken promise is still made good
    as soon as it costs no other.

    Args:
        prefills: in the order of `by_deadline`.
    """
    late = [prefill for prefill in prefills if prefill.late]
    if not late:
        return prefills
    attainable = prefills[: len(prefills) - len(late)]
    took_s, spare_s = 0.0, math.inf
    for prefill in attainable:
        took_s += prefill.took_s
        spare_s = min(spare_s, headroom.until(prefill.due_s - now_s) - took_s)
    first = 0
    for prefill in late:
        spare_s -= prefill.took_s
        if spare_s < SPARE_FRACTION * took_s:
            break
        first += 1
    return [*late[:first], *attainable, *late[first:]]


def short_of_time(prefills: Sequence[Prefill], headroom: Headroom, now_s: float, part: float = 1.0) -> bool:
    """Whether one that can be in time would not be in this part of the room that there is."""
    took_s = 0.0
    for prefill in prefills:
        if prefill.due_s == math.inf:
            break
        if prefill.late:
            continue
        took_s += prefill.took_s
        if took_s > part * headroom.until(prefill.due_s - now_s):
            return True
    return False


def most_in_time(prefills: list[Prefill], headroom: Headroom, now_s: float, best_case_fraction: float) -> list[Prefill]:
    """Where not all that can be in time can be so together: the longest are given up as late until the others can be.

    Moore and Hodgson's rule, which keeps as many as possible; by due time alone each would make the next one late.

    Args:
        prefills: in the order of `by_deadline`.
        hope: as in `ComposerPolicy`.
    """
    took_s = 0.0
    longest: list[tuple[float, str]] = []
    given_up: set[str] = set()
    for prefill in prefills:
        if prefill.late or prefill.due_s == math.inf:
            break
        took_s += prefill.took_s
        heapq.heappush(longest, (-prefill.took_s, prefill.request_id))
        while took_s > max(0.0, headroom.until((prefill.due_s - now_s) / best_case_fraction)):
            gone_s, request_id = heapq.heappop(longest)
            took_s = took_s + gone_s if longest else 0.0
            given_up.add(request_id)
    if not given_up:
        return prefills
    return sorted([each._replace(late=each.late or each.request_id in given_up) for each in prefills])


def with_attainable(
    prefills: list[Prefill], attainable: Iterable[Prefill], headroom: Headroom, extended: Headroom, now_s: float
) -> list[Prefill]:
    """Promised prefills, and by due time among them those of best effort that may still be in time, as far as all that
    are promised are in time all the same.

    Args:
        prefills: in the order of `by_deadline`, none of them short of time.
        hopeful: best effort, in the order in which it is to be tried.
        room: of this, promised ones must be in time in three quarters.
        stretched: in all of this, best effort must be.
    """
    merged = prefills
    for candidate in attainable:
        trial = sorted([*merged, candidate])
        took_s, fits = 0.0, True
        for each in trial:
            if each.late or each.due_s == math.inf:
                break
            took_s += each.took_s
            if each.due_s < candidate.due_s:
                continue
            left_s = each.due_s - now_s
            if took_s > (
                extended.until(left_s) if each.work.best_effort else (1 - SPARE_FRACTION) * headroom.until(left_s)
            ):
                fits = False
                break
        if fits:
            merged = trial
    return merged


def rescued_by_skipping_s(prefills: Sequence[Prefill], headroom: Headroom, now_s: float) -> float:
    """What those take together, up to the last, that would be in time only if streams sat the first step out; 0 if
    there are none.

    Args:
        room: with what streams would leave.
    """
    took_s, needed_s = 0.0, 0.0
    for prefill in prefills:
        if prefill.late or prefill.due_s == math.inf:
            break
        took_s += prefill.took_s
        if 0 < took_s - headroom.until(prefill.due_s - now_s) + headroom.skipped_s <= headroom.skipped_s:
            needed_s = took_s
    return needed_s


def best_effort_decode_s(
    prefills: Sequence[Prefill],
    streams: Iterable[SchedulableRequest],
    meter: StepMeter,
    limit_s: float,
    buffered_limit_s: float,
    now_s: float,
) -> float:
    """What streams of best effort take that go before promised prefills, which are in time all the same.

    Otherwise prefills, one after the other, would leave them nothing. The oldest, in half of the room that promised
    streams leave.

    Args:
        streams: of best effort.
        limit_s, relaxed_s: as in `Streams`.
    """
    before_s = meter.seconds() if meter.tokens else 0.0
    beside_s, context_tokens = 0.0, 0
    if limit_s <= 0:
        return beside_s
    for number, w in enumerate(sorted(streams, key=lambda w: w.waiting_since_s), 1):
        context_tokens += w.computed_tokens
        took_s = meter.decodes_s(context_tokens, number)
        headroom = Headroom(limit_s, limit_s, before_s + took_s)
        if took_s > (buffered_limit_s - before_s) / 2 or short_of_time(prefills, headroom, now_s):
            break
        beside_s = took_s
    return beside_s
