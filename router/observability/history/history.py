"""The router's memory of requests that ended or were refused: the latest of every kind, and counts over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from router.observability.history.windows import Windows
from router.requests.events import Refusal, RequestObserver
from router.requests.lateness import Lateness, latenesses
from router.requests.live_request import LiveRequest
from router.requests.request_record import Ending, RequestRecord, refusal_record
from router.requests.step_log import LoggedStep, StepLog
from services.rpc.errors import RequestError, reason_of

KEPT_RECORDS = 512
"""Number of records kept of requests that went well, of requests that went wrong, and of refused ones, each."""
TURNED_AWAY = "turned away"
"""Name under which requests are counted that were refused before their profile was known."""

_TROUBLE = frozenset({Ending.MISSED, Ending.FAILED})


@dataclass(slots=True)
class History(RequestObserver):
    """Remembers the latest requests, in bounded memory.

    Requests that went wrong have room of their own, and so have refused ones: a thousand good ones a second must not
    push out what an operator looks for.
    """

    windows: Windows = field(default_factory=Windows)
    steps: StepLog = field(default_factory=StepLog)
    """The latest steps of the workers, which tell who made a request late."""
    kept_records: int = KEPT_RECORDS
    _fine: deque[RequestRecord] = field(default_factory=deque)
    _trouble: deque[RequestRecord] = field(default_factory=deque)
    _refused: deque[RequestRecord] = field(default_factory=deque)
    _by_id: dict[str, RequestRecord] = field(default_factory=dict)

    def on_ended(self, request: LiveRequest, record: RequestRecord, error: RequestError | None) -> None:
        """Remember an admitted request that ended.

        Who broke a guarantee is looked up now, as steps are soon forgotten. Of best effort that was late, which an
        overload brings by the hundred, it is looked up when somebody asks.
        """
        if record.ending is Ending.MISSED:
            record = replace(record, latenesses=self.latenesses(record))
        self.add(record)

    def on_stepped(self, worker_id: str, step: LoggedStep) -> None:
        """Remember an engine step."""
        self.steps.add(worker_id, step)

    def latenesses(self, record: RequestRecord) -> tuple[Lateness, ...]:
        """Return the targets that a request missed, and who was in the steps that made it late."""
        if record.latenesses is not None:
            return record.latenesses
        return () if record.course is None else latenesses(record.course, self.steps)

    def on_refused(self, refusal: Refusal) -> None:
        """Remember a refused request. Of one that made no sense nothing is kept; it is only counted."""
        if refusal.parsed is None:
            self.add_unparsed(refusal.error, refusal.refused_s)
        else:
            record = refusal_record(
                refusal.parsed,
                refusal.planning,
                refusal.arrival_s,
                refusal.refused_s,
                str(refusal.error),
                refusal.trace.trace_id,
            )
            self.add_refused(record, refusal.error)

    def add(self, record: RequestRecord) -> None:
        """Remember an admitted request that ended."""
        self.windows.at(record.ended_s).of(record.profile).add(record)
        self._keep(self._trouble if record.ending in _TROUBLE else self._fine, record)

    def add_refused(self, record: RequestRecord, error: RequestError) -> None:
        """Remember a request that was understood but not admitted."""
        tally = self.windows.at(record.ended_s).of(record.profile)
        tally.add(record)
        tally.refused_by[refusal_reason(error)] += 1
        self._keep(self._refused, record)

    def add_unparsed(self, error: RequestError, now_s: float) -> None:
        """Count a request that was refused before it was understood."""
        tally = self.windows.at(now_s).of(TURNED_AWAY)
        tally.ended[Ending.REFUSED] += 1
        tally.refused_by[refusal_reason(error)] += 1

    def find(self, request_id: str) -> RequestRecord | None:
        """Return the last request that had this id; None if it is forgotten, or never was."""
        return self._by_id.get(request_id)

    def latest(self, count: int) -> list[RequestRecord]:
        """Return the last `count` admitted requests that ended, newest first."""
        newest = (*_last(self._fine, count), *_last(self._trouble, count))
        return sorted(newest, key=lambda record: -record.ended_s)[:count]

    def trouble(self, count: int) -> list[RequestRecord]:
        """Return the last `count` requests that missed a guarantee or failed, newest first."""
        return list(_last(self._trouble, count))

    def refusals(self, count: int) -> list[RequestRecord]:
        """Return the last `count` refused requests, newest first."""
        return list(_last(self._refused, count))

    def _keep(self, ring: deque[RequestRecord], record: RequestRecord) -> None:
        ring.append(record)
        self._by_id[record.request_id] = record
        if len(ring) > self.kept_records:
            oldest = ring.popleft()
            # The same id may have come again since.
            if self._by_id.get(oldest.request_id) is oldest:
                del self._by_id[oldest.request_id]


def refusal_reason(error: RequestError) -> str:
    """Return the resource that binds, if the contract was the reason; else the error's name on the wire."""
    return error.metadata.get("binding") or reason_of(error)


def _last(ring: deque[RequestRecord], count: int) -> Iterable[RequestRecord]:
    return (ring[-index] for index in range(1, min(count, len(ring)) + 1))
