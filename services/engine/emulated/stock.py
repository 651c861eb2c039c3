"""The baseline: steps as a vLLM composes them that knows no promises."""

from __future__ import annotations

from collections.abc import Sequence

from services.engine.kv.blocks import blocks_for
from services.slo.composer import Composition, Limits, SchedulableRequest
from services.slo.performance import PerformanceModel, StepShape


def compose_stock(
    work: Sequence[SchedulableRequest], free_blocks: int, model: PerformanceModel, limits: Limits
) -> Composition:
    """Compose a step of single tokens, then prompts in chunks, both in the order of admission, then the queue.

    Args:
        work: the running ones first, oldest admission first; then the waiting ones, next admission first.
        model: predicts the step; nothing is decided by it.

    A single token needs a block now and then; without a free one the youngest running request gives up its own and is
    computed again later. Prompts get their blocks at admission, and nothing is admitted by a step that preempts.
    """
    kept = [w for w in work if w.running and not w.pulls_kv]
    places = limits.max_running_requests - sum(w.running for w in work)
    preempted: list[SchedulableRequest] = []
    grants: dict[str, int] = {}
    budget = limits.max_step_tokens
    position = 0
    while position < len(kept) and budget > 0:
        w = kept[position]
        position += 1
        if w.pending_tokens > 1:
            continue
        lacking = blocks_for(w.computed_tokens + 1, limits.block_tokens) - w.held_blocks
        while lacking > free_blocks and len(kept) >= position:
            victim = kept.pop()
            preempted.append(victim)
            free_blocks += victim.held_blocks
        if len(kept) < position:
            break
        free_blocks -= lacking
        budget -= 1
        grants[w.request_id] = 1
    for w in kept:
        if w.pending_tokens > 1 and budget > 0:
            grants[w.request_id] = min(w.pending_tokens, budget)
            budget -= grants[w.request_id]
    admitted: list[str] = []
    for w in work if not preempted else ():
        if w.running:
            continue
        needed = blocks_for(w.computed_tokens + w.pending_tokens, limits.block_tokens)
        if places < 1 or needed > free_blocks or (budget == 0 and not w.pulls_kv):
            break
        free_blocks -= needed
        places -= 1
        admitted.append(w.request_id)
        if not w.pulls_kv:
            grants[w.request_id] = min(w.pending_tokens, budget)
            budget -= grants[w.request_id]
    shape = _shape(work, grants)
    return Composition(
        grants=grants,
        preempted=tuple(w.request_id for w in preempted),
        admitted=tuple(admitted),
        held=tuple(w.request_id for w in kept if w.request_id not in grants),
        limit_s=float("inf"),
        predicted_s=model.step_s(shape),
        shape=shape,
    )


def _shape(work: Sequence[SchedulableRequest], grants: dict[str, int]) -> StepShape:
    served = [(w, grants[w.request_id]) for w in work if w.request_id in grants]
    prefills = [(w.computed_tokens, tokens) for w, tokens in served if not w.decoding]
    contexts = [w.computed_tokens for w, _ in served if w.decoding]
    return StepShape(
        prefill_requests=len(prefills),
        prefill_tokens=sum(tokens for _, tokens in prefills),
        prefill_attention_pairs=sum(tokens * (context + tokens / 2) for context, tokens in prefills),
        decode_requests=len(contexts),
        decode_tokens=len(contexts),
        decode_context_tokens=sum(contexts),
    )
