"""The requests of an engine, sorted by what is owed to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.slo.composer.step import SchedulableRequest
from services.slo.kv_blocks import blocks_for

_NEVER = math.inf


@dataclass(slots=True)
class RequestQueues:
    """Every request of an engine in one of three queues, and sums over them.

    Requests whose KV is on its way are in no queue, because nothing can be done for them.
    """

    streams: list[SchedulableRequest] = field(default_factory=list)
    """Promised requests that run and have one token to compute: decodes, and requests whose KV has landed."""
    prefills: list[SchedulableRequest] = field(default_factory=list)
    """Promised requests that are no streams."""
    best_effort: list[SchedulableRequest] = field(default_factory=list)
    """Requests without a promise."""
    attainable_streams: list[SchedulableRequest] = field(default_factory=list)
    """Best-effort requests that decode under a contract they have kept so far; they are in `best_effort` too."""
    has_unpromised_contract: bool = False
    """Whether a best-effort request has a contract: it found no capacity, and waits for its first token or is in time
    so far."""
    lacking_block: list[SchedulableRequest] = field(default_factory=list)
    """Streams whose next token needs another block."""
    decodes: int = 0
    """Number of streams that decode."""
    context_tokens: int = 0
    """Context tokens of these decodes together."""
    running: int = 0
    """Number of running requests, each of which has a slot."""
    pulling_kv: int = 0
    """Number of running requests whose KV is on its way."""
    reserved_blocks: int = 0
    """Number of blocks that running prefills will take besides those that they hold."""
    earliest_due_s: float = _NEVER
    """Earliest time at which a stream should have its next token."""
    buffered_due_s: float = _NEVER
    """Earliest such time less the stream's buffer."""
    tightest_tpot_s: float = _NEVER
    """Tightest TPOT among streams without drafts; a stream with drafts may be served more rarely."""
    has_drafts: bool = False
    """Whether a stream, promised or attainable, brings drafts."""


def sort_into_queues(work: Sequence[SchedulableRequest], block_tokens: int, buffer_tpots: float) -> RequestQueues:
    """Sort all requests of an engine, in one pass that is most of the time of a composition.

    Hence one loop over local names, with streams, which are nearly all there is, in its shortest branch; and
    comparisons instead of `min`, which NaN never wins.

    Args:
        block_tokens: tokens of a KV block.
        buffer_tpots: as in `ComposerPolicy`.
    """
    queues = RequestQueues()
    streams, lacking_block = queues.streams, queues.lacking_block
    decodes = context_tokens = draft_tokens = 0
    earliest_due_s = buffered_due_s = tightest_tpot_s = _NEVER
    never = _NEVER
    for w in work:
        due_s, tpot_s = w.due_s, w.tpot_s
        if (
            w.pending_tokens != 1
            or not w.running
            or w.pulls_kv
            or w.best_effort
            or not (due_s < never or (tpot_s < never and due_s == never))
        ):
            _queue_other(queues, w, block_tokens)
            continue
        streams.append(w)
        computed_tokens, time_s = w.computed_tokens, w.wanted_s
        if w.decoding:
            decodes += 1
            context_tokens += computed_tokens
        if computed_tokens >= w.held_blocks * block_tokens:
            lacking_block.append(w)
        if not time_s < due_s:
            time_s = due_s
        if time_s < earliest_due_s:  # noqa: PLR1730
            earliest_due_s = time_s
        if tpot_s < never:
            if tpot_s < tightest_tpot_s:  # noqa: PLR1730
                tightest_tpot_s = tpot_s
            time_s -= buffer_tpots * tpot_s
        if time_s < buffered_due_s:  # noqa: PLR1730
            buffered_due_s = time_s
        draft_tokens += w.draft_tokens
    queues.decodes, queues.context_tokens = decodes, context_tokens
    queues.earliest_due_s, queues.buffered_due_s = earliest_due_s, buffered_due_s
    queues.tightest_tpot_s = tightest_tpot_s
    queues.running += len(streams)
    if draft_tokens:
        queues.has_drafts = True
        queues.tightest_tpot_s = min([_NEVER, *[w.tpot_s for w in streams if not w.draft_tokens]])
    return queues


def _queue_other(queues: RequestQueues, w: SchedulableRequest, block_tokens: int) -> None:
    """Sort a request that is no promised stream."""
    if w.running:
        queues.running += 1
        if w.pulls_kv:
            queues.pulling_kv += 1
            return
        if w.pending_tokens != 1:
            needed = blocks_for(w.computed_tokens + w.pending_tokens, block_tokens)
            queues.reserved_blocks += max(0, needed - w.held_blocks)
    if w.best_effort or not (w.due_s < _NEVER or (w.tpot_s < _NEVER and w.due_s == _NEVER)):
        queues.best_effort.append(w)
        if w.due_s < _NEVER:
            queues.has_unpromised_contract = True
            if w.decoding and w.running:
                queues.attainable_streams.append(w)
                queues.has_drafts = queues.has_drafts or w.draft_tokens > 0
    else:
        queues.prefills.append(w)
