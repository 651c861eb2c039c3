"""The work of an engine, sorted by what is owed to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.slo.composer.step import Work

_NEVER = math.inf


@dataclass(slots=True)
class Docket:
    """Every request but those whose KV is on its way, which nothing can be done about."""

    streams: list[Work] = field(default_factory=list)
    """Promised, running, with one token to compute: decodes, and what has landed."""
    prefills: list[Work] = field(default_factory=list)
    """Promised, all others."""
    best_effort: list[Work] = field(default_factory=list)
    blockless: list[Work] = field(default_factory=list)
    """Of `streams`, those that need another block."""
    decodes: int = 0
    """Of `streams`, those that decode."""
    context_tokens: int = 0
    """Of these."""
    running: int = 0
    """Places taken."""
    pulling: int = 0
    """Of these, those whose KV is on its way."""
    reserved_blocks: int = 0
    """What running prefills will take besides the blocks that they hold."""
    soonest_s: float = _NEVER
    """When the first token of `streams` should come."""
    buffered_s: float = _NEVER
    """The same, each earlier by its buffer."""
    tightest_s: float = _NEVER
    """The tightest TPOT among promised work; a stream that brings drafts may be served more rarely."""
    drafting: bool = False
    """One of `streams` brings drafts."""


def sort_out(work: Sequence[Work], block_tokens: int, buffer: float) -> Docket:
    """One look at everything: most of the time that a composition takes."""
    docket = Docket()
    streams, prefills, best_effort = docket.streams, docket.prefills, docket.best_effort
    for w in work:
        if w.running:
            docket.running += 1
            if w.pulls_kv:
                docket.pulling += 1
                continue
            if w.pending_tokens != 1:
                needed = -(-(w.computed_tokens + w.pending_tokens) // block_tokens)
                docket.reserved_blocks += max(0, needed - w.held_blocks)
        if w.best_effort or not (w.due_s < _NEVER or (w.tpot_s < _NEVER and w.due_s == _NEVER)):
            best_effort.append(w)
        elif w.running and w.pending_tokens == 1:
            streams.append(w)
        else:
            prefills.append(w)
    if streams:
        _look_at_streams(docket, block_tokens, buffer)
    if prefills:
        docket.tightest_s = min([docket.tightest_s, *[w.tpot_s for w in prefills]])
    return docket


def _look_at_streams(docket: Docket, block_tokens: int, buffer: float) -> None:
    streams = docket.streams
    contexts = [w.computed_tokens for w in streams if w.decoding]
    docket.decodes, docket.context_tokens = len(contexts), sum(contexts)
    docket.blockless = [w for w in streams if w.computed_tokens >= w.held_blocks * block_tokens]
    # A comparison takes half the time of `min`, and NaN never wins it.
    times_s = [(w.wanted_s if w.wanted_s < w.due_s else w.due_s, w.tpot_s) for w in streams]  # noqa: FURB136
    docket.soonest_s = min([time_s for time_s, _ in times_s])
    docket.buffered_s = min([time_s - buffer * tpot_s if tpot_s < _NEVER else time_s for time_s, tpot_s in times_s])
    docket.drafting = max([w.draft_tokens for w in streams]) > 0
    paces_s = (
        [w.tpot_s for w in streams if not w.draft_tokens] if docket.drafting else [tpot_s for _, tpot_s in times_s]
    )
    docket.tightest_s = min([_NEVER, *paces_s])
