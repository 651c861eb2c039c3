"""Workers as latency forecasts need them, for requests with and without a promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from services.slo.admission.other_routers import promised_prompts
from services.slo.admission.planner_view import PlannerView
from services.slo.admission.requests import context_tokens
from services.slo.admission.step_under_way import under_way
from services.slo.admission.workers import WorkerState
from services.slo.latency_forecast import DecodeView, Forecast, Placement, PrefillView, QueuedPrefill

LEAST_SHARE = 0.05
"""Share of a decode worker's time that prompts get in any case, however tight its streams are."""


def prefill_view(view: PlannerView, state: WorkerState, now_s: float) -> PrefillView:
    """Return a worker as far as its prompts go: everything that it has or will get counts."""
    given = view.requests.prefilling(state.worker_id)
    busy_s, in_step = under_way(state, given, view.requests, view.options.submission_s, now_s)
    queue = [
        QueuedPrefill(request.rank_s, left, request.planned)
        for request in (*given, *view.requests.awaiting(state.worker_id))
        if (left := context_tokens(request) - request.prefilled_tokens - in_step.get(request.facts.request_id, 0)) > 0
    ]
    queue += [
        QueuedPrefill(now_s + theirs.deadline_s, theirs.prompt_tokens - theirs.computed_tokens, guaranteed=True)
        for theirs in promised_prompts(state, in_step, now_s)
    ]
    return PrefillView(
        worker_id=state.worker_id,
        model=state.model,
        bound=state.bound,
        max_step_tokens=state.facts.limits.max_step_tokens,
        busy_until_s=now_s + busy_s,
        queue=tuple(sorted(queue, key=lambda prompt: prompt.due_s)),
        kv_tokens=state.facts.kv_tokens,
        share=_share_of_prompts(view, state) if state.decodes else 1.0,
    )


def decode_view(view: PlannerView, state: WorkerState) -> DecodeView:
    """Return a worker as far as its decodes go; requests that are placed there but still in prefill count."""
    there, others = view.loads.of(state.worker_id, step=state.steps).everyone, state.others
    busy, coverage = bool(there or others.requests), view.options.handover_coverage
    return DecodeView(
        worker_id=state.worker_id,
        model=state.model,
        bound=state.bound,
        requests=len(there) + others.requests,
        context_tokens=view.requests.decoding_tokens(state.worker_id) + others.tokens,
        max_running_requests=state.facts.limits.max_running_requests,
        kv_tokens_free=state.facts.kv_tokens - there.kv_tokens() - others.tokens,
        kv_tokens=state.facts.kv_tokens,
        handover_steps=view.handovers.steps(state.worker_id, busy=busy),
        handover_steps_bound=view.handovers.steps_bound(state.worker_id, coverage, busy=busy),
    )


def transfer(view: PlannerView, source: str, target: WorkerState, tokens: int) -> Forecast:
    """Return how long the KV cache of so many tokens takes from one worker to another, in seconds."""
    kv_bytes = tokens * target.facts.kv_bytes_per_token
    handovers, coverage = view.handovers, view.options.handover_coverage
    return Forecast(
        handovers.transfer_s(source, target.worker_id, kv_bytes),
        handovers.transfer_bound_s(source, target.worker_id, kv_bytes, coverage),
    )


def _share_of_prompts(view: PlannerView, state: WorkerState) -> float:
    """Return the share of a decode worker's steps that prompts get: a step is as long as its tightest stream allows."""
    known = view.loads.of(state.worker_id, step=state.steps)
    tiers = () if known.tiers is None else known.tiers.tpot_s
    tpots_s = [tpot_s for tpot_s, requests in zip(tiers, known.planned.running, strict=True) if requests]
    tpots_s += [decodes.tpot_s for decodes in state.others.decodes if decodes.tpot_s is not None]
    if not tpots_s:
        return 1.0
    tokens = view.requests.decoding_tokens(state.worker_id) + state.others.tokens
    step_s = state.model.decode_step_s(len(known.everyone) + state.others.requests, tokens)
    return max(LEAST_SHARE, 1 - step_s / min(tpots_s))


@dataclass(slots=True)
class RoundViews:
    """Workers as one round finds them for requests without a promise, with those the round has placed already.

    Each worker is looked at once. Without this, all requests of a round would go where the first of them goes.
    """

    view: PlannerView
    now_s: float
    _prefill: dict[str, PrefillView] = field(default_factory=dict)
    _decode: dict[str, DecodeView] = field(default_factory=dict)

    def prefill(self, prefill: Iterable[WorkerState], decode: Iterable[WorkerState]) -> list[PrefillView]:
        """Return views of the prefill workers, and of those decode workers that may compute prompts."""
        views = []
        for state in (*prefill, *(state for state in decode if self.view.prefills_too(state))):
            seen = self._prefill.get(state.worker_id)
            if seen is None:
                seen = self._prefill[state.worker_id] = prefill_view(self.view, state, self.now_s)
            views.append(seen)
        return views

    def decode(self, decode: Iterable[WorkerState]) -> list[DecodeView]:
        """Return views of the decode workers."""
        views = []
        for state in decode:
            seen = self._decode.get(state.worker_id)
            if seen is None:
                seen = self._decode[state.worker_id] = decode_view(self.view, state)
            views.append(seen)
        return views

    def place(self, placement: Placement, prompt_tokens: int, kv_tokens: int) -> None:
        """Count a request where it was placed, on workers that were looked at."""
        first = self._prefill[placement.prefill_worker_id]
        prompt = QueuedPrefill(placement.due_s, prompt_tokens, guaranteed=False)
        queue = tuple(sorted((*first.queue, prompt), key=lambda queued: queued.due_s))
        self._prefill[placement.prefill_worker_id] = replace(first, queue=queue)
        there = self._decode[placement.decode_worker_id]
        self._decode[placement.decode_worker_id] = replace(
            there,
            requests=there.requests + 1,
            context_tokens=there.context_tokens + prompt_tokens,
            kv_tokens_free=there.kv_tokens_free - kv_tokens,
        )
