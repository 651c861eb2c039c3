"""What the requests that a round has found room for can expect: those promised together share steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from router.admission.planning_view import Ask, PlanningView
from router.cluster.cluster_view import WorkerView
from services.slo.latency_forecast import Forecast, Placement, QueuedPrefill, first_tokens, worst_gap
from services.slo.planner import Decision


@dataclass(frozen=True, slots=True)
class Promise:
    """A request that a round has found room for."""

    decision: Decision
    ask: Ask
    arrival_s: float

    @property
    def request_id(self) -> str:
        return self.ask.request_id


def place_promises(
    promises: Sequence[Promise],
    workers: Mapping[str, WorkerView],
    view: PlanningView,
    patience_s: float,
    now_s: float,
) -> dict[str, Placement]:
    """The placements that a round's decisions mean, by request id.

    Args:
        patience_s: without a deadline a request is ranked as if due so long after its arrival, as best effort is.
    """
    lanes: dict[str, list[Promise]] = defaultdict(list)
    decoders: dict[str, list[Promise]] = defaultdict(list)
    for promise in promises:
        lanes[promise.decision.prefill_worker_id].append(promise)
        decoders[promise.decision.decode_worker_id].append(promise)
    ranks_s = {promise.request_id: min(promise.ask.due_s, promise.arrival_s + patience_s) for promise in promises}
    first_s: dict[str, Forecast] = {}
    for worker_id, there in lanes.items():
        joining = [
            QueuedPrefill(ranks_s[promise.request_id], promise.ask.prompt_tokens, guaranteed=True) for promise in there
        ]
        finish_s = first_tokens(joining, view.prefill_view(workers[worker_id], now_s), now_s)
        first_s.update(zip([promise.request_id for promise in there], finish_s, strict=True))
    return {
        promise.request_id: _placement(promise, ranks_s[promise.request_id], first_s[promise.request_id], gap, now_s)
        for worker_id, there in decoders.items()
        for promise, gap in zip(there, _worst_gaps(workers[worker_id], there, view), strict=True)
    }


def _placement(promise: Promise, rank_s: float, first: Forecast, gap: Forecast, now_s: float) -> Placement:
    decision = promise.decision
    # The plan lets a prompt end its step; its engine may put more into that step, as long as it is in time.
    planned_s = now_s + (decision.expected_first_token_s or 0.0)
    bound_s = max(planned_s, min(first.bound_s, promise.ask.due_s))
    # The gap is beside everybody at their largest; the plan has found that the promised one is kept.
    gap_bound_s = max(decision.step_s or 0.0, min(gap.bound_s, promise.ask.tpot_s or math.inf))
    return Placement(
        prefill_worker_id=decision.prefill_worker_id,
        decode_worker_id=decision.decode_worker_id,
        due_s=rank_s,
        ttft=Forecast(min(first.expected_s, bound_s), bound_s).after(promise.arrival_s),
        tpot=Forecast(min(gap.expected_s, gap_bound_s), gap_bound_s),
    )


def _worst_gaps(there: WorkerView, promises: Sequence[Promise], view: PlanningView) -> list[Forecast]:
    """Of promises that will decode on the same worker, each beside all others."""
    seen = view.decode_view(there)
    kv_tokens = sum(promise.ask.kv_tokens for promise in promises)
    gaps = []
    for promise in promises:
        lane_id, ask = promise.decision.prefill_worker_id, promise.ask
        local = lane_id == there.worker_id
        transfer = Forecast(0.0, 0.0) if local else view.transfer(lane_id, there, ask.prompt_tokens)
        beside = replace(
            seen,
            requests=seen.requests + len(promises) - 1,
            context_tokens=seen.context_tokens + kv_tokens - ask.kv_tokens,
        )
        gaps.append(worst_gap(ask.kv_tokens, beside, transfer, local=local))
    return gaps
