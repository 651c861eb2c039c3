"""What one engine step does: a pure function of who is there and what is free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.engine.emulated.blocks import blocks_for
from services.slo.performance import StepShape


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What no step may exceed."""

    max_step_tokens: int
    max_running_requests: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request as the composition sees it."""

    request_id: str
    computed_tokens: int
    """Tokens whose KV is in its blocks."""
    pending_tokens: int
    """Tokens to compute before the next one can be drawn; at least 1."""
    held_blocks: int
    decoding: bool
    """It has drawn a token from the KV it holds."""
    pulls_kv: bool = False
    """Waiting requests only: once it has blocks, its KV is pulled into them before anything can be computed."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of one request that a step computes."""

    request_id: str
    tokens: int
    added_blocks: int


@dataclass(frozen=True, slots=True)
class Admission:
    """A request leaves the waiting queue with blocks for its whole context."""

    request_id: str
    added_blocks: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Applied in this order: preemptions, admissions, chunks."""

    preempted: tuple[str, ...]
    """They lose their blocks and go back to the head of the queue, each before the one named earlier."""
    admitted: tuple[Admission, ...]
    chunks: tuple[Chunk, ...]
    shape: StepShape


def compose_step(
    running: Sequence[Candidate], waiting: Iterable[Candidate], pulling: int, free_blocks: int, limits: StepLimits
) -> StepPlan:
    """Single tokens first, then prompts in chunks, both in the order of admission; then the queue from its head.

    Args:
        running: oldest admission first.
        waiting: next admission first; read only as far as requests are admitted.
        pulling: requests whose KV is on its way. They hold blocks and count as running.
        free_blocks: blocks nobody holds.
        limits: of this engine.

    A single token needs a block now and then; without a free one the youngest running request gives up its own and is
    computed again later. Prompts get their blocks at admission, and nothing is admitted by a step that preempts.
    """
    kept = list(running)
    preempted: list[Candidate] = []
    chunks: list[Chunk] = []
    parts: list[tuple[Candidate, int]] = []
    budget = limits.max_step_tokens
    position = 0
    while position < len(kept) and budget > 0:
        candidate = kept[position]
        position += 1
        if candidate.pending_tokens > 1:
            continue
        added = blocks_for(candidate.computed_tokens + 1, limits.block_tokens) - candidate.held_blocks
        while added > free_blocks and len(kept) >= position:
            victim = kept.pop()
            preempted.append(victim)
            free_blocks += victim.held_blocks
        if len(kept) < position:
            break
        free_blocks -= added
        budget -= 1
        chunks.append(Chunk(candidate.request_id, 1, added))
        parts.append((candidate, 1))

    for candidate in kept:
        if candidate.pending_tokens > 1 and budget > 0:
            tokens = min(candidate.pending_tokens, budget)
            budget -= tokens
            chunks.append(Chunk(candidate.request_id, tokens, 0))
            parts.append((candidate, tokens))

    admitted: list[Admission] = []
    for candidate in () if preempted else waiting:
        added = blocks_for(candidate.computed_tokens + candidate.pending_tokens, limits.block_tokens)
        has_slot = len(kept) + pulling + len(admitted) < limits.max_running_requests
        if not has_slot or added > free_blocks or (budget == 0 and not candidate.pulls_kv):
            break
        free_blocks -= added
        admitted.append(Admission(candidate.request_id, added))
        if not candidate.pulls_kv:
            tokens = min(candidate.pending_tokens, budget)
            budget -= tokens
            chunks.append(Chunk(candidate.request_id, tokens, 0))
            parts.append((candidate, tokens))

    return StepPlan(
        preempted=tuple(candidate.request_id for candidate in preempted),
        admitted=tuple(admitted),
        chunks=tuple(chunks),
        shape=shape_of(parts),
    )


def shape_of(parts: Iterable[tuple[Candidate, int]]) -> StepShape:
    """The regressors of the performance model for a step that computes so many tokens of each request."""
    prefill_requests = prefill_tokens = decodes = context_tokens = 0
    pairs = 0.0
    for candidate, tokens in parts:
        if candidate.decoding:
            decodes += 1
            context_tokens += candidate.computed_tokens
        else:
            prefill_requests += 1
            prefill_tokens += tokens
            pairs += tokens * (candidate.computed_tokens + tokens / 2)
    return StepShape(
        prefill_requests=prefill_requests,
        prefill_tokens=prefill_tokens,
        prefill_attention_pairs=pairs,
        decode_requests=decodes,
        decode_tokens=decodes,
        decode_context_tokens=context_tokens,
    )
