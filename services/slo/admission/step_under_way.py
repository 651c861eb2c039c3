"""The step that a worker is working on, as far as it can be told from what the worker was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from services.slo.admission.index import RequestIndex
from services.slo.admission.other_routers import prompts_in_step
from services.slo.admission.requests import Progress, TrackedRequest, context_tokens, promised_tpot_s
from services.slo.admission.workers import WorkerState
from services.slo.composer import ComposerPolicy, Composition, SchedulableRequest, compose


def under_way(
    worker: WorkerState, prompts: Sequence[TrackedRequest], requests: RequestIndex, submission_s: float, now_s: float
) -> tuple[float, Mapping[str, int]]:
    """Return how many seconds the step takes from now at most, and the prompt tokens that it computes of each request.

    The step is composed here as the worker's engine composes it, of what the worker had when the step began.

    Args:
        prompts: prompts that the worker was given and has not finished.
        submission_s: seconds that a prompt takes to reach the engine.
    """
    began_s = worker.step_began_s
    there = [request for request in prompts if request.submitted_s <= began_s - submission_s]
    if not there and not worker.others.prompts:
        left_s = began_s + worker.last_step_s - now_s if worker.load.running_requests > 0 else 0.0
        return max(min(worker.last_step_s, left_s), worker.stopped_step_ends_s - now_s, 0.0), {}
    step = began_s, len(there)
    if worker.composed is None or worker.composed[0] != step:
        worker.composed = step, _composed(worker, there, requests)
    composition = worker.composed[1]
    left_s = min(composition.predicted_s, began_s + composition.predicted_s - now_s)
    return max(left_s, worker.stopped_step_ends_s - now_s, 0.0), composition.grants


def _composed(worker: WorkerState, prompts: Sequence[TrackedRequest], requests: RequestIndex) -> Composition:
    facts, block_tokens = worker.facts, worker.facts.limits.block_tokens
    # A prompt that is computed beside streams gets the part of the step that they leave.
    streams = [
        _stream(request, block_tokens)
        for request in requests.decoding(facts.worker_id)
        if request.progress is Progress.DECODING
    ]
    return compose(
        [*map(_prompt, prompts), *prompts_in_step(worker), *streams],
        facts.kv_blocks,
        worker.bound,
        facts.limits,
        worker.step_began_s,
        ComposerPolicy(step_cap_s=facts.max_step_s),
    )


def _prompt(request: TrackedRequest) -> SchedulableRequest:
    return SchedulableRequest(
        request_id=request.facts.request_id,
        computed_tokens=request.prefilled_tokens,
        pending_tokens=max(1, context_tokens(request) - request.prefilled_tokens),
        decoding=False,
        running=False,
        held_blocks=0,
        due_s=request.rank_s if request.planned else math.inf,
        best_effort=not request.planned,
        waiting_since_s=request.submitted_s,
    )


def _stream(request: TrackedRequest, block_tokens: int) -> SchedulableRequest:
    """Return a stream whose rate bounds the step; when its next token is due the engine knows better."""
    tpot_s = promised_tpot_s(request)
    tokens = context_tokens(request)
    return SchedulableRequest(
        request_id=request.facts.request_id,
        computed_tokens=tokens,
        pending_tokens=1,
        decoding=True,
        running=True,
        held_blocks=tokens // block_tokens + 1,
        tpot_s=math.inf if tpot_s is None else tpot_s,
        best_effort=not request.guaranteed,
        waiting_since_s=request.submitted_s,
    )
