"""Where the requests that a round has found room for run, and what they can expect: they share steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.slo.admission.latency_view import decode_view, prefill_view, transfer
from services.slo.admission.planner_view import PlannerView
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.admission.workers import WorkerState
from services.slo.latency_forecast import Forecast, Placement, QueuedPrefill, first_tokens, worst_gap
from services.slo.planner import Decision


@dataclass(frozen=True, slots=True)
class RoomFound:
    """A request that a round has found room for."""

    decision: Decision
    wanted: PromiseWanted
    arrival_s: float

    @property
    def request_id(self) -> str:
        return self.wanted.request_id


def place_promises(
    found: Sequence[RoomFound], workers: Mapping[str, WorkerState], view: PlannerView, now_s: float
) -> dict[str, Placement]:
    """Return the placements that a round's decisions mean, by request id.

    A request without a deadline is ranked as if due `best_effort_patience_s` after its arrival, as best effort is.
    """
    by_prefill: dict[str, list[RoomFound]] = defaultdict(list)
    by_decode: dict[str, list[RoomFound]] = defaultdict(list)
    for room in found:
        by_prefill[room.decision.prefill_worker_id].append(room)
        by_decode[room.decision.decode_worker_id].append(room)
    patience_s = view.options.best_effort_patience_s
    ranks_s = {room.request_id: min(room.wanted.due_s, room.arrival_s + patience_s) for room in found}
    first_s: dict[str, Forecast] = {}
    for worker_id, there in by_prefill.items():
        joining = [
            QueuedPrefill(ranks_s[room.request_id], room.wanted.prompt_tokens, guaranteed=True) for room in there
        ]
        finish_s = first_tokens(joining, prefill_view(view, workers[worker_id], now_s), now_s)
        first_s.update(zip([room.request_id for room in there], finish_s, strict=True))
    return {
        room.request_id: _placement(room, ranks_s[room.request_id], first_s[room.request_id], gap, now_s)
        for worker_id, there in by_decode.items()
        for room, gap in zip(there, _worst_gaps(workers[worker_id], there, view), strict=True)
    }


def _placement(room: RoomFound, rank_s: float, first: Forecast, gap: Forecast, now_s: float) -> Placement:
    decision = room.decision
    # The plan lets a prompt end its step; its engine may put more into that step, as long as it is in time.
    planned_s = now_s + (decision.expected_first_token_s or 0.0)
    bound_s = max(planned_s, min(first.bound_s, room.wanted.due_s))
    # The gap is beside everybody at their largest; the plan has found that the promised one is kept.
    gap_bound_s = max(decision.step_s or 0.0, min(gap.bound_s, room.wanted.tpot_s or math.inf))
    return Placement(
        prefill_worker_id=decision.prefill_worker_id,
        decode_worker_id=decision.decode_worker_id,
        due_s=rank_s,
        ttft=Forecast(min(first.expected_s, bound_s), bound_s).after(room.arrival_s),
        tpot=Forecast(min(gap.expected_s, gap_bound_s), gap_bound_s),
    )


def _worst_gaps(there: WorkerState, found: Sequence[RoomFound], view: PlannerView) -> list[Forecast]:
    """Return the longest wait for a token of requests that will decode on one worker, each beside all others."""
    seen = decode_view(view, there)
    kv_tokens = sum(room.wanted.kv_tokens for room in found)
    gaps = []
    for room in found:
        source, wanted = room.decision.prefill_worker_id, room.wanted
        local = source == there.worker_id
        moved = Forecast(0.0, 0.0) if local else transfer(view, source, there, wanted.prompt_tokens)
        beside = replace(
            seen,
            requests=seen.requests + len(found) - 1,
            context_tokens=seen.context_tokens + kv_tokens - wanted.kv_tokens,
        )
        gaps.append(worst_gap(wanted.kv_tokens, beside, moved, local=local))
    return gaps
