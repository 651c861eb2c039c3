"""The work that a worker has promised to other routers: it has its place in plans like our own.

Best effort of other routers is not told: engines put it behind all that is promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.slo.admission.other_work import OtherWork
from services.slo.admission.tiers import tier_of
from services.slo.admission.workers import WorkerState
from services.slo.composer import SchedulableRequest
from services.slo.planner import PromisedPrefill, Tiers


def with_others(
    running: tuple[int, ...], context_tokens: tuple[int, ...], others: OtherWork, tiers: Tiers
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return requests and context tokens of each tier, those of other routers added.

    Args:
        running, context_tokens: our own, one entry for each tier.
    """
    if not others.decodes:
        return running, context_tokens
    requests, contexts = list(running), list(context_tokens)
    for decodes in others.decodes:
        if (tier := tier_of(decodes.tpot_s, tiers)) >= 0:
            requests[tier] += decodes.requests
            contexts[tier] += decodes.tokens
    return tuple(requests), tuple(contexts)


def promised_prompts(worker: WorkerState, in_step: Mapping[str, int], now_s: float) -> Iterator[PromisedPrefill]:
    """Yield what is left to compute of the prompts that other routers have promised on a worker.

    Args:
        in_step: prompt tokens of each request in the step under way.
    """
    for index, prompts in enumerate(worker.others.prompts):
        in_this_step = min(prompts.tokens - 1, in_step.get(_name(index), 0))
        due_s = worker.others_told_s + prompts.due_in_s
        yield PromisedPrefill(due_s - now_s, prompts.tokens, in_this_step)


def prompts_in_step(worker: WorkerState) -> Iterator[SchedulableRequest]:
    """Yield the prompts of other routers as an engine that composes a step sees them."""
    for index, prompts in enumerate(worker.others.prompts):
        yield SchedulableRequest(
            request_id=_name(index),
            computed_tokens=0,
            pending_tokens=prompts.tokens,
            decoding=False,
            running=False,
            held_blocks=0,
            due_s=worker.others_told_s + prompts.due_in_s,
            waiting_since_s=worker.others_told_s,
        )


def _name(index: int) -> str:
    """Return the name by which a prompt of other routers goes in a step; client ids hold no blank."""
    return f"other {index}"
