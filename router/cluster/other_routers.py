"""The work of other routers in this one's plans: it has its room like our own, and comes first where it is due first.

Best effort of others is not told: engines put it behind all that is promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from router.admission.tiers import tier_of
from router.cluster.cluster_view import WorkerView
from services import wire
from services.slo.composer import SchedulableRequest
from services.slo.planner import CommittedLoad, PromisedPrefill, Tiers


def with_others(
    holdings: CommittedLoad, others: wire.OtherWork, tiers: Tiers
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Requests and contexts of each tier, those of other routers included."""
    if not others.decodes:
        return holdings.running, holdings.context_tokens
    running, contexts = list(holdings.running), list(holdings.context_tokens)
    for decodes in others.decodes:
        if (tier := tier_of(decodes.tpot_s, tiers)) >= 0:
            running[tier] += decodes.requests
            contexts[tier] += decodes.tokens
    return tuple(running), tuple(contexts)


def promised_prompts(view: WorkerView, in_step: Mapping[str, int], now_s: float) -> Iterator[PromisedPrefill]:
    """What is left to compute of the prompts that other routers have promised there."""
    for index, prompts in enumerate(view.others.prompts):
        in_this_step = min(prompts.tokens - 1, in_step.get(_name(index), 0))
        due_s = view.others_told_s + prompts.due_in_s
        yield PromisedPrefill(due_s - now_s, prompts.tokens, in_this_step)


def _name(index: int) -> str:
    """The name by which a prompt of other routers goes in a step; client ids hold no blank."""
    return f"other {index}"


def prompts_in_step(view: WorkerView) -> Iterator[SchedulableRequest]:
    """Their prompts, as an engine that composes a step sees them."""
    for index, prompts in enumerate(view.others.prompts):
        yield SchedulableRequest(
            request_id=_name(index),
            computed_tokens=0,
            pending_tokens=prompts.tokens,
            decoding=False,
            running=False,
            held_blocks=0,
            due_s=view.others_told_s + prompts.due_in_s,
            waiting_since_s=view.others_told_s,
        )
