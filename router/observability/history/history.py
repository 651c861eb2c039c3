"""Everything that is remembered: the last requests of every kind, and counts over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from router.observability.history.record import Ending, RequestRecord
from router.observability.history.windows import Windows
from services.rpc.errors import STATUS_OF, RequestError

KEPT_RECORDS = 512
"""Of requests that ended as they should, of those that did not, and of the refused, each."""
TURNED_AWAY = "turned away"
"""Where other requests have the name of a profile."""

_TROUBLE = frozenset({Ending.MISSED, Ending.FAILED})


@dataclass(slots=True)
class History:
    """Owned by one event loop.

    Requests that went wrong have room of their own, as have the refused: a thousand good ones a second must not push
    out what an operator looks for.
    """

    windows: Windows = field(default_factory=Windows)
    kept_records: int = KEPT_RECORDS
    _fine: deque[RequestRecord] = field(default_factory=deque)
    _trouble: deque[RequestRecord] = field(default_factory=deque)
    _refused: deque[RequestRecord] = field(default_factory=deque)
    _by_id: dict[str, RequestRecord] = field(default_factory=dict)

    def ended(self, record: RequestRecord) -> None:
        """A request that was taken has come to its end."""
        self.windows.at(record.ended_s).of(record.profile).add(record)
        self._keep(self._trouble if record.ending in _TROUBLE else self._fine, record)

    def refused(self, record: RequestRecord, error: RequestError) -> None:
        """A request was understood, but not taken."""
        tally = self.windows.at(record.ended_s).of(record.profile)
        tally.add(record)
        tally.refused_by[refusal_reason(error)] += 1
        self._keep(self._refused, record)

    def turned_away(self, error: RequestError, now_s: float) -> None:
        """A request made no sense, or not now: it is counted, and nothing that it says is kept."""
        tally = self.windows.at(now_s).of(TURNED_AWAY)
        tally.ended[Ending.REFUSED] += 1
        tally.refused_by[refusal_reason(error)] += 1

    def find(self, request_id: str) -> RequestRecord | None:
        """The last request that had this id; None if it is forgotten, or never was."""
        return self._by_id.get(request_id)

    def latest(self, count: int) -> list[RequestRecord]:
        """The last requests that ended, the refused left out, newest first."""
        newest = (*_last(self._fine, count), *_last(self._trouble, count))
        return sorted(newest, key=lambda record: -record.ended_s)[:count]

    def trouble(self, count: int) -> list[RequestRecord]:
        """The last that missed a promise or failed, newest first."""
        return list(_last(self._trouble, count))

    def refusals(self, count: int) -> list[RequestRecord]:
        """The last that were refused, newest first."""
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
    """What bound, for a contract that could not be guaranteed; else the error's name on the wire."""
    return error.metadata.get("binding") or STATUS_OF[type(error)][1]


def _last(ring: deque[RequestRecord], count: int) -> Iterable[RequestRecord]:
    return (ring[-index] for index in range(1, min(count, len(ring)) + 1))
