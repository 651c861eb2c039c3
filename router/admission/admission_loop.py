"""Planning rounds on arrivals, when a worker did something and on a timer; who waits for a verdict."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.admission.assessment import Admission, Arrival, Assessment
from router.admission.planning_view import Ask
from router.admission.promises import Promise
from router.requests.events import RequestEvents
from router.requests.live_request import LiveRequest
from router.requests.planning_log import Outcome, PlanningNote, PlanningRound
from services.rpc.errors import CancelledRequestError, PlanningFailedError, RequestError
from services.slo.latency_forecast import Placement
from services.slo.planner import Binding

log = logging.getLogger(__name__)

COALESCE_S = 2e-3
"""Arrivals this close together are planned in one round."""
PLANNING_SHARE = 0.1
"""Of the router's time at most: while rounds are long, arrivals are gathered for longer."""
WORKERS_PER_AGED = 4
"""For so many prefill workers, one request without a promise has room in the plan at a time: what waits cannot starve,
and at a lasting overload it cannot take the place of promises either."""


@dataclass(slots=True)
class _Pending:
    arrival: Arrival
    take: Callable[[Assessment], None]
    settled: asyncio.Future[Assessment]
    noted: bool = False
    """Among the newcomers."""


class AdmissionLoop:
    """Decides about every pending request; takes the admitted at once, so that nothing is promised twice.

    A request that finds no room now, but would within `max_hold_s` and in time for its contract, is planned again
    until then. Best effort that has waited for its patience is planned like a promise, without being called one: it
    cannot starve. Owned by one event loop.
    """

    def __init__(
        self,
        admission: Admission,
        commit: Callable[[LiveRequest, Placement], None],
        clock: Callable[[], float],
        max_hold_s: float,
        events: RequestEvents,
    ) -> None:
        """
        Args:
            commit: gives a queued request the room that was planned for it.
            max_hold_s: no verdict comes later than this after the arrival.
        """
        self._admission = admission
        self._commit = commit
        self._clock = clock
        self._max_hold_s = max_hold_s
        self._events = events
        self._rounds = 0
        """Number of rounds so far."""
        self._pending: dict[str, _Pending] = {}
        self._scheduled: asyncio.TimerHandle | None = None
        self._next_round_s = -math.inf

    @property
    def held(self) -> int:
        """Requests without a verdict."""
        return len(self._pending)

    async def decide(self, arrival: Arrival, take: Callable[[Assessment], None]) -> Assessment:
        """The verdict on a request.

        Args:
            take: called with the verdict in the round that reached it, before any other request is decided.

        Raises:
            RequestError: it is refused, cannot be served, or was cancelled meanwhile.
        """
        request_id = arrival.parsed.request_id
        settled: asyncio.Future[Assessment] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = _Pending(arrival, take, settled)
        self.soon()
        try:
            return await settled
        finally:
            self._pending.pop(request_id, None)

    def cancel(self, request_id: str) -> bool:
        """Refuse a request that waits for its verdict. False if none with this id does."""
        pending = self._pending.pop(request_id, None)
        if pending is None or pending.settled.done():
            return False
        pending.settled.set_exception(CancelledRequestError("cancelled before it was decided about"))
        return True

    def changed(self) -> None:
        """Something on a worker changed: whoever waits for room may have it now."""
        if self._pending:
            self.soon()

    def place_again(self, request: LiveRequest, now_s: float) -> Placement:
        """As `Admission.place_again`."""
        placement = self._admission.place_again(request, now_s)
        self._moved(request, placement, now_s)
        return placement

    def worker_gone(self, worker_id: str) -> None:
        """Forget what is known of a worker."""
        self._admission.view.forget(worker_id)
        self.changed()

    def soon(self) -> None:
        """Have a round as soon as one is due again."""
        if self._scheduled is None:
            delay_s = max(0.0, self._next_round_s - self._clock())
            self._scheduled = asyncio.get_running_loop().call_later(delay_s, self._run)

    def tick(self) -> None:
        """From the timer: rounds that no event brings."""
        if self._pending or self._aged(self._clock()):
            self.soon()

    def _run(self) -> None:
        self._scheduled = None
        now_s = self._clock()
        self._rounds += 1
        pending = list(self._pending.values())
        planning_s = 0.0
        if pending:
            planned = PlanningRound(self._rounds, now_s, len(pending))
            assessments = self._assess(pending, now_s)
            planned.took_s = planning_s = self._clock() - now_s
            for waiting, assessment in zip(pending, assessments, strict=True):
                self._note_newcomer(waiting, assessment)
                self._settle(waiting, assessment, planned)
        self._make_room(now_s)
        self._events.round_ended(self._clock() - now_s)
        # What it takes to settle a request is spent in whichever round that is.
        self._next_round_s = now_s + max(COALESCE_S, planning_s / PLANNING_SHARE)

    def _assess(self, pending: Sequence[_Pending], now_s: float) -> Sequence[Assessment | RequestError]:
        try:
            return self._admission.assess([waiting.arrival for waiting in pending], now_s)
        except Exception as error:  # A defect in planning must not leave clients waiting for ever.
            log.exception("planning failed for %d requests", len(pending))
            return [PlanningFailedError(f"{type(error).__name__} while planning") for _ in pending]

    def _note_newcomer(self, waiting: _Pending, assessment: Assessment | RequestError) -> None:
        if waiting.noted or isinstance(assessment, RequestError) or not assessment.contract.promises_anything:
            return
        waiting.noted = True
        parsed, contract = waiting.arrival.parsed, assessment.contract
        tokens, ttft_s = len(parsed.prompt), contract.ttft_s(0.0)
        due_s = math.inf if ttft_s is None else ttft_s
        ask = Ask(parsed.request_id, tokens, tokens, due_s, contract.tightest_tpot_s, contract.value)
        self._admission.view.newcomers.note(ask)

    def _note_price(self, assessment: Assessment, now_s: float) -> None:
        if assessment.work_per_value is not None and assessment.binding is not Binding.NO_WORKER:
            ttft_s = assessment.contract.ttft_s(0.0)
            late = ttft_s is None or assessment.placement.ttft.expected_s > ttft_s
            self._admission.view.price.settled(now_s, assessment.work_per_value, assessment.binding, late=late)

    def _settle(self, waiting: _Pending, assessment: Assessment | RequestError, planned: PlanningRound) -> None:
        arrival, now_s = waiting.arrival, planned.at_s
        if waiting.settled.done():
            return
        if not isinstance(assessment, RequestError):
            until_s = assessment.waits_until_s
            if until_s is not None and until_s <= arrival.arrival_s + self._max_hold_s and now_s < until_s:
                _note(arrival, planned, Outcome.HELD, assessment)
                return
            self._note_price(assessment, now_s)
            refusal = assessment.refused
            if refusal is None:
                outcome = Outcome.GUARANTEED if assessment.guaranteed else Outcome.BEST_EFFORT
                _note(arrival, planned, outcome, assessment)
                waiting.take(assessment)
                waiting.settled.set_result(assessment)
            else:
                _note(arrival, planned, Outcome.REFUSED, assessment)
                waiting.settled.set_exception(refusal)
        else:
            arrival.planning.add(PlanningNote(planned, Outcome.REFUSED, detail=str(assessment)))
            waiting.settled.set_exception(assessment)
        self._pending.pop(arrival.parsed.request_id, None)

    def _aged(self, now_s: float) -> list[LiveRequest]:
        """What has waited in the queue for longer than its patience, as far as it may be given room now."""
        requests = self._admission.view.requests
        aged = [request for request in requests.queued() if not request.planned and request.due_s <= now_s]
        if not aged:
            return []
        lanes = sum(len(group.lanes) for group in self._admission.cluster.groups())
        given_room = sum(request.planned and not request.guaranteed for request in requests)
        return aged[: max(0, max(1, lanes // WORKERS_PER_AGED) - given_room)]

    def _make_room(self, now_s: float) -> None:
        aged = self._aged(now_s)
        if not aged:
            return
        view, patience_s = self._admission.view, self._admission.best_effort_patience_s
        asks = [
            Ask(request.request_id, request.context_tokens, view.memory.of(request), now_s + patience_s)
            for request in aged
        ]
        decisions = self._admission.plan(asks, self._admission.cluster.groups(), now_s)
        promises = [Promise(decisions[ask.request_id], ask, now_s) for ask in asks if ask.request_id in decisions]
        placements = self._admission.promised([promise for promise in promises if promise.decision.guaranteed], now_s)
        for request in aged:
            if request.request_id in placements:
                self._moved(request, placements[request.request_id], now_s)
                self._commit(request, placements[request.request_id])

    def _moved(self, request: LiveRequest, placement: Placement, now_s: float) -> None:
        planned = PlanningRound(self._rounds, now_s, 1)
        request.planning.add(PlanningNote(planned, Outcome.MOVED, placement))


def _note(arrival: Arrival, planned: PlanningRound, outcome: Outcome, assessment: Assessment) -> None:
    arrival.planning.add(
        PlanningNote(planned, outcome, assessment.placement, assessment.binding, assessment.earliest_guarantee_s)
    )
