"""Promised prefills, in the order in which a step serves them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.slo.composer.cost import StepMeter
from services.slo.composer.step import Work

SPARE = 0.25
"""Of what prefills take that can be in time, kept for the overhead of their steps before a late one goes first."""


class Prefill(NamedTuple):
    """By deadline; those that are late in any case after those that can be in time."""

    late: bool
    """It could not be in time even if the engine did nothing else and its steps went well."""
    due_s: float
    waiting_since_s: float
    request_id: str
    took_s: float
    """What it takes besides the overhead of its steps; 0 until its KV is pulled."""
    work: Work


def by_deadline(
    works: Iterable[Work], meter: StepMeter, max_step_tokens: int, now_s: float, hope: float
) -> list[Prefill]:
    """Promised work that is no stream; `hope` as in `Policy`."""
    overhead_s = meter.overhead_s()
    prefills = []
    for w in works:
        took_s = steps_s = 0.0
        if not w.pulls_kv:
            took_s = meter.prefill_s(w.pending_tokens, w.computed_tokens)
            steps_s = overhead_s * -(-w.pending_tokens // max_step_tokens)
        late = now_s + hope * (took_s + steps_s) > w.due_s
        prefills.append(Prefill(late, w.due_s, w.waiting_since_s, w.request_id, took_s, w))
    return sorted(prefills)


def late_ones_first(prefills: list[Prefill], share: float, now_s: float) -> list[Prefill]:
    """Late ones before those that can be in time, as many as leave these in time: a broken promise is still made good
    as soon as it costs no other.

    Args:
        prefills: in the order of `by_deadline`.
        share: of the time of a step, what prefills get.
    """
    late = [prefill for prefill in prefills if prefill.late]
    if not late:
        return prefills
    hopeful = prefills[: len(prefills) - len(late)]
    took_s, spare_s = 0.0, math.inf
    for prefill in hopeful:
        took_s += prefill.took_s
        spare_s = min(spare_s, share * (prefill.due_s - now_s) - took_s)
    first = 0
    for prefill in late:
        spare_s -= prefill.took_s
        if spare_s < SPARE * took_s:
            break
        first += 1
    return [*late[:first], *hopeful, *late[first:]]


def short_of_time(prefills: Sequence[Prefill], share: float, now_s: float) -> bool:
    """Whether one that can be in time would not be if every step left prefills this share of its time."""
    took_s = 0.0
    for prefill in prefills:
        if prefill.due_s == math.inf:
            break
        if prefill.late:
            continue
        took_s += prefill.took_s
        if took_s > share * (prefill.due_s - now_s):
            return True
    return False
