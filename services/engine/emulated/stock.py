"""The baseline: steps as a vLLM composes them that knows no promises."""

from __future__ import annotations

from collections.abc import Sequence

from services.slo.composer import Composition, Limits, SchedulableRequest
from services.slo.kv_blocks import blocks_for
from services.slo.performance import PerformanceModel, StepShape


def compose_stock(
    requests: Sequence[SchedulableRequest], free_blocks: int, model: PerformanceModel, limits: Limits
) -> Composition:
    """Compose a step of single tokens, then prompts in chunks, both in the order of admission, then the queue.

    Args:
        requests: the running ones first, oldest admission first; then the waiting ones, next admission first.
        model: predicts the step; nothing is decided by it.

    A single token needs a block now and then; without a free one the youngest running request gives up its own and is
    computed again later. Prompts get their blocks at admission, and nothing is admitted by a step that preempts.
    """
    kept = [request for request in requests if request.running and not request.pulls_kv]
    places = limits.max_running_requests - sum(request.running for request in requests)
    preempted: list[SchedulableRequest] = []
    grants: dict[str, int] = {}
    budget = limits.max_step_tokens
    position = 0
    while position < len(kept) and budget > 0:
        request = kept[position]
        position += 1
        if request.pending_tokens > 1:
            continue
        lacking = blocks_for(request.computed_tokens + 1, limits.block_tokens) - request.held_blocks
        while lacking > free_blocks and len(kept) >= position:
            victim = kept.pop()
            preempted.append(victim)
            free_blocks += victim.held_blocks
        if len(kept) < position:
            break
        free_blocks -= lacking
        budget -= 1
        grants[request.request_id] = 1
    for request in kept:
        if request.pending_tokens > 1 and budget > 0:
            grants[request.request_id] = min(request.pending_tokens, budget)
            budget -= grants[request.request_id]
    admitted: list[str] = []
    for request in requests if not preempted else ():
        if request.running:
            continue
        needed = blocks_for(request.computed_tokens + request.pending_tokens, limits.block_tokens)
        if places < 1 or needed > free_blocks or (budget == 0 and not request.pulls_kv):
            break
        free_blocks -= needed
        places -= 1
        admitted.append(request.request_id)
        if not request.pulls_kv:
            grants[request.request_id] = min(request.pending_tokens, budget)
            budget -= grants[request.request_id]
    shape = _shape(requests, grants)
    return Composition(
        grants=grants,
        preempted=tuple(request.request_id for request in preempted),
        admitted=tuple(admitted),
        held=tuple(request.request_id for request in kept if request.request_id not in grants),
        limit_s=float("inf"),
        predicted_s=model.step_s(shape),
        shape=shape,
    )


def _shape(requests: Sequence[SchedulableRequest], grants: dict[str, int]) -> StepShape:
    served = [(request, grants[request.request_id]) for request in requests if request.request_id in grants]
    prefills = [(request.computed_tokens, tokens) for request, tokens in served if not request.decoding]
    contexts = [request.computed_tokens for request, _ in served if request.decoding]
    return StepShape(
        prefill_requests=len(prefills),
        prefill_tokens=sum(tokens for _, tokens in prefills),
        prefill_attention_pairs=sum(tokens * (context + tokens / 2) for context, tokens in prefills),
        decode_requests=len(contexts),
        decode_tokens=len(contexts),
        decode_context_tokens=sum(contexts),
    )
