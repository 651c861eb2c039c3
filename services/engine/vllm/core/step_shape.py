"""The shape of a step, from which the performance model predicts its duration, as read from vLLM's plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from services.slo.performance import StepShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


def step_shape(requests: Mapping[str, Request], plan: SchedulerOutput) -> StepShape:
    """Return what a planned step computes. The plan holds each request's context as it is before the step."""
    contexts = {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
    cached = plan.scheduled_cached_reqs
    contexts.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    prefills = prefill_tokens = decodes = decode_tokens = decode_context = 0
    pairs = 0.0
    for request_id, tokens in plan.num_scheduled_tokens.items():
        context = contexts[request_id]
        # A request that was preempted computes its output again as well; drafts come on top of what is known.
        if context + 1 >= requests[request_id].num_tokens:
            decodes += 1
            decode_tokens += tokens
            decode_context += context + tokens
        else:
            prefills += 1
            prefill_tokens += tokens
            pairs += tokens * (context + tokens / 2)
    # An n-gram costs nothing to draft, but to verify drafts costs more than their tokens, and grows with the longest.
    longest_draft = max(map(len, plan.scheduled_spec_decode_tokens.values()), default=0)
    return StepShape(prefills, prefill_tokens, pairs, decodes, decode_tokens, decode_context, longest_draft)
