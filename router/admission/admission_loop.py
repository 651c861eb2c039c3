"""Planning rounds of the admission core on arrivals, when a worker did something and on a timer."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from router.admission.refusals import refusal_of, unservable_arrival_error, unservable_error
from router.admission.undecided import UndecidedRequest
from router.cluster.cluster_view import ClusterView
from router.requests.events import RequestEvents
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.planning_log import PlanningNote, PlanningRound
from services.rpc.errors import CancelledRequestError, PlanningFailedError, RequestError
from services.slo.admission import AdmissionCore, AdmissionRound, Assessment, Held, Outcome, RequestVerdict, Unservable
from services.slo.latency_forecast import Placement

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """A client that waits for its verdict."""

    request: UndecidedRequest
    take: Callable[[Assessment], None]
    settled: asyncio.Future[Assessment]


class AdmissionLoop:
    """Has the admission core decide when it is time, and carries out its verdicts. Owned by one event loop.

    An admitted request is taken in the round that decided about it, before anything else is decided, so that nothing is
    promised twice.
    """

    def __init__(
        self,
        core: AdmissionCore,
        cluster: ClusterView,
        requests: LiveRequests,
        give_room: Callable[[LiveRequest, Placement], None],
        clock: Callable[[], float],
        events: RequestEvents,
    ) -> None:
        """Begin without a request.

        Args:
            give_room: gives a queued request the room that was planned for it.
        """
        self._core = core
        self._cluster = cluster
        self._requests = requests
        self._give_room = give_room
        self._clock = clock
        self._events = events
        self._waiting: dict[str, _Waiting] = {}
        self._rounds = 0
        """Number of rounds so far."""
        self._scheduled: asyncio.TimerHandle | None = None
        self._scheduled_s = math.inf

    @property
    def held(self) -> int:
        """Number of requests without a verdict."""
        return self._core.pending

    async def decide(self, request: UndecidedRequest, take: Callable[[Assessment], None]) -> Assessment:
        """Wait for the verdict on a request.

        Args:
            take: called with the verdict in the round that reached it, before any other request is decided.

        Raises:
            RequestError: it is refused, cannot be served, or was cancelled meanwhile.
        """
        request_id = request.parsed.request_id
        settled: asyncio.Future[Assessment] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = _Waiting(request, take, settled)
        self._core.arrived(request.arrival)
        self._have_round(self._core.next_round_s)
        try:
            return await settled
        finally:
            if self._waiting.pop(request_id, None) is not None:
                self._core.withdrawn(request_id)

    def cancel(self, request_id: str) -> bool:
        """Refuse a request that waits for its verdict. Returns False if none with this id does."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None or waiting.settled.done():
            return False
        self._core.withdrawn(request_id)
        waiting.settled.set_exception(CancelledRequestError("cancelled before it was decided about"))
        return True

    def assess(self, request: UndecidedRequest, now_s: float) -> Assessment:
        """Return what would become of a request that is not to be taken.

        Raises:
            RequestError: it cannot be served.
        """
        answer = self._core.assess(request.arrival, now_s)
        if isinstance(answer, Unservable):
            raise self._unservable(answer, request)
        return answer

    def changed(self) -> None:
        """Note that something on a worker changed: whoever waits for room may have it now."""
        if self._core.pending:
            self._have_round(self._core.next_round_s)

    def place_again(self, request: LiveRequest, now_s: float) -> Placement:
        """Return where a request goes on whose worker is gone, or that is to be moved: its verdict stands.

        Raises:
            NoWorkerError: no worker could take the request now.
            InvalidRequestError: what it holds fits no worker that is left.
        """
        answer = self._core.place_again(request, now_s)
        if isinstance(answer, Unservable):
            left = self._core.promised_kv_tokens(request) - request.context_tokens
            raise unservable_error(answer, self._cluster.missing(), request.context_tokens, left)
        self._note_moved(request, answer, now_s)
        return answer

    def tick(self) -> None:
        """Have a round that no event brings, if one could change anything."""
        if self._core.wants_round(self._clock()):
            self._have_round(self._core.next_round_s)

    def _have_round(self, at_s: float) -> None:
        """Have a round then, or earlier if one is due earlier."""
        now_s = self._clock()
        at_s = max(now_s, at_s)
        if self._scheduled is not None:
            if self._scheduled_s <= at_s:
                return
            self._scheduled.cancel()
        self._scheduled_s = at_s
        self._scheduled = asyncio.get_running_loop().call_later(at_s - now_s, self._run)

    def _run(self) -> None:
        self._scheduled, self._scheduled_s = None, math.inf
        now_s = self._clock()
        self._rounds += 1
        if self._core.pending:
            planned = PlanningRound(self._rounds, now_s, self._core.pending)
            decided = self._decide(now_s)
            planning_s = planned.took_s = self._clock() - now_s
            for verdict in decided.verdicts:
                self._carry_out(verdict, planned)
            # What it takes to settle a request is spent in whichever round that is.
            self._core.planning_took(now_s, planning_s)
            if decided.replan_at_s < math.inf:
                self._have_round(max(decided.replan_at_s, self._core.next_round_s))
        for given in self._core.give_room(now_s):
            request = self._requests.get(given.request.facts.request_id)
            if request is not None:
                self._note_moved(request, given.placement, now_s)
                self._give_room(request, given.placement)
        self._events.round_ended(self._clock() - now_s)

    def _decide(self, now_s: float) -> AdmissionRound:
        """Decide about all who wait; requests that planning fails on are refused, the others decided about."""
        try:
            return self._core.decide(now_s)
        except Exception as error:  # A defect in planning must not leave clients waiting for ever.
            log.exception("planning failed for %d requests", self._core.pending)
            if self._refuse_failing(now_s):
                try:
                    return self._core.decide(now_s)
                except Exception:
                    log.exception("planning failed for the other %d requests too", self._core.pending)
            failure = PlanningFailedError(f"{type(error).__name__} while planning")
            for waiting in list(self._waiting.values()):
                self._give_up(waiting, failure)
            return AdmissionRound(self._rounds, now_s, (), math.inf)

    def _refuse_failing(self, now_s: float) -> bool:
        """Refuse those who wait and on whom planning fails when they are alone; return whether there were any."""
        found = False
        for waiting in list(self._waiting.values()):
            try:
                self._core.assess(waiting.request.arrival, now_s)
            except Exception as error:
                log.exception("planning fails on request %s", waiting.request.parsed.request_id)
                found = True
                self._give_up(waiting, PlanningFailedError(f"{type(error).__name__} while planning"))
        return found

    def _give_up(self, waiting: _Waiting, failure: PlanningFailedError) -> None:
        self._core.withdrawn(waiting.request.parsed.request_id)
        self._refuse(waiting, failure)

    def _carry_out(self, verdict: RequestVerdict, planned: PlanningRound) -> None:
        try:
            self._settle(verdict, planned)
        except Exception as error:  # A defect with one request must not leave the others of its round waiting for ever.
            log.exception("the verdict on %s could not be carried out", verdict.request_id)
            waiting = self._waiting.get(verdict.request_id)
            if waiting is not None:
                self._give_up(waiting, PlanningFailedError(f"{type(error).__name__} while the verdict was carried out"))

    def _settle(self, verdict: RequestVerdict, planned: PlanningRound) -> None:
        waiting = self._waiting.get(verdict.request_id)
        if waiting is None or waiting.settled.done():
            return
        planning, answer = waiting.request.planning, verdict.answer
        if isinstance(answer, Unservable):
            error = self._unservable(answer, waiting.request)
            planning.add(PlanningNote(planned, verdict.outcome, detail=str(error)))
            self._refuse(waiting, error)
            return
        where = None if isinstance(answer, Held) else answer.placement
        planning.add(PlanningNote(planned, verdict.outcome, where, answer.binding, answer.earliest_guarantee_s))
        if isinstance(answer, Held):
            return
        refusal = refusal_of(answer)
        if refusal is not None:
            self._refuse(waiting, refusal)
            return
        waiting.take(answer)
        waiting.settled.set_result(answer)
        self._waiting.pop(verdict.request_id, None)

    def _refuse(self, waiting: _Waiting, error: RequestError) -> None:
        if not waiting.settled.done():
            waiting.settled.set_exception(error)
        self._waiting.pop(waiting.request.parsed.request_id, None)

    def _unservable(self, why: Unservable, request: UndecidedRequest) -> RequestError:
        return unservable_arrival_error(why, self._cluster.missing(), request.arrival.facts)

    def _note_moved(self, request: LiveRequest, placement: Placement, now_s: float) -> None:
        planned = PlanningRound(self._rounds, now_s, 1)
        request.planning.add(PlanningNote(planned, Outcome.MOVED, placement))
