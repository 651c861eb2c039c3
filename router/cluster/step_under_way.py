"""The step that a worker is working on, as far as the router can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from router.cluster.cluster_view import SUBMISSION_S, WorkerView
from router.cluster.other_routers import prompts_in_step
from router.requests.live_request import LiveRequest
from router.requests.request_index import Requests
from services.slo.composer import ComposerPolicy, Composition, Limits, SchedulableRequest, compose
from services.state.journal_entry import RequestState


def under_way(
    view: WorkerView, prompts: Sequence[LiveRequest], requests: Requests, now_s: float
) -> tuple[float, Mapping[str, int]]:
    """How much longer it takes at most, and the prompt tokens it computes of each request.

    Composed here as the worker's engine composes it, of what it had when the step began.

    Args:
        prompts: that the worker was given and has not finished.
    """
    began_s = view.step_began_s
    there = [request for request in prompts if request.submitted_s <= began_s - SUBMISSION_S]
    if not there and not view.others.prompts:
        left_s = began_s + view.last_step_s - now_s if view.load.running_requests > 0 else 0.0
        return max(min(view.last_step_s, left_s), view.stopped_step_ends_s - now_s, 0.0), {}
    step = began_s, len(there)
    if view.composed is None or view.composed[0] != step:
        view.composed = step, _composed(view, there, requests)
    composition = view.composed[1]
    left_s = min(composition.predicted_s, began_s + composition.predicted_s - now_s)
    return max(left_s, view.stopped_step_ends_s - now_s, 0.0), composition.grants


def _composed(view: WorkerView, prompts: Sequence[LiveRequest], requests: Requests) -> Composition:
    facts = view.facts
    streams = [
        request for request in requests.decoding(view.worker_id) if request.state is RequestState.DECODING
    ]  # A prompt that is computed beside them gets the part of the step that they leave.
    block_tokens = facts.compatibility.block_tokens
    return compose(
        [*map(_prompt, prompts), *prompts_in_step(view), *(_stream(request, block_tokens) for request in streams)],
        facts.kv_blocks_total,
        view.bound,
        Limits(facts.max_step_tokens, facts.max_running_requests, block_tokens),
        view.step_began_s,
        ComposerPolicy(step_cap_s=facts.max_step_s),
    )


def note_stop(view: WorkerView, request: LiveRequest, requests: Requests, now_s: float) -> None:
    """Its worker is told to let go of a request: the step under way goes on all the same."""
    if request.state is RequestState.PREFILLING:
        left_s, _ = under_way(view, requests.prefilling(view.worker_id), requests, now_s)
        view.stopped_step_ends_s = now_s + left_s


def _prompt(request: LiveRequest) -> SchedulableRequest:
    return SchedulableRequest(
        request_id=request.request_id,
        computed_tokens=request.prefilled_tokens,
        pending_tokens=max(1, request.context_tokens - request.prefilled_tokens),
        decoding=False,
        running=False,
        held_blocks=0,
        due_s=request.due_s if request.planned else math.inf,
        best_effort=not request.planned,
        waiting_since_s=request.submitted_s,
    )


def _stream(request: LiveRequest, block_tokens: int) -> SchedulableRequest:
    """Its rate bounds the step; when its next token is due the engine knows better."""
    tpot_s = request.meter.tightest_tpot_s() if request.guaranteed else None
    return SchedulableRequest(
        request_id=request.request_id,
        computed_tokens=request.context_tokens,
        pending_tokens=1,
        decoding=True,
        running=True,
        held_blocks=request.context_tokens // block_tokens + 1,
        tpot_s=math.inf if tpot_s is None else tpot_s,
        best_effort=not request.guaranteed,
        waiting_since_s=request.submitted_s,
    )
