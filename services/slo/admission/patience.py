"""Room for best effort that has waited for its patience: it is planned like a promise, without being called one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.slo.admission.assessor import Assessor
from services.slo.admission.index import RequestIndex
from services.slo.admission.promise_placement import RoomFound
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.admission.requests import TrackedRequest, context_tokens
from services.slo.latency_forecast import Placement


@dataclass(frozen=True, slots=True)
class RoomGiven:
    """A request that has outwaited its patience and has room in the plan from now on."""

    request: TrackedRequest
    placement: Placement


def aged(requests: RequestIndex, assessor: Assessor, now_s: float) -> list[TrackedRequest]:
    """Return what has waited in the queue for longer than its patience, as far as it may be given room now."""
    waiting = [request for request in requests.queued() if not request.planned and request.rank_s <= now_s]
    if not waiting:
        return []
    workers = sum(len(group.first_choice) for group in assessor.cluster.groups())
    given_room = sum(request.planned and not request.guaranteed for request in requests)
    return waiting[: max(0, max(1, workers // assessor.view.options.workers_per_aged) - given_room)]


def room_for(waiting: Sequence[TrackedRequest], assessor: Assessor, now_s: float) -> list[RoomGiven]:
    """Return those of the requests that room is found for."""
    due_s = now_s + assessor.view.options.best_effort_patience_s
    wanted = [
        PromiseWanted(request.facts.request_id, context_tokens(request), assessor.view.memory.of(request), due_s)
        for request in waiting
    ]
    decisions = assessor.plan(wanted, assessor.cluster.groups(), now_s, keep_headroom=False)
    found = [
        RoomFound(decisions[request.request_id], request, now_s)
        for request in wanted
        if request.request_id in decisions and decisions[request.request_id].guaranteed
    ]
    placements = assessor.place(found, now_s)
    return [
        RoomGiven(request, placements[request.facts.request_id])
        for request in waiting
        if request.facts.request_id in placements
    ]
