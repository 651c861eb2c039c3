"""Every admitted request of this router, by its id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from router.requests.live_request import LiveRequest
from services.slo.admission import TrackedRequest
from services.state.journal_entry import RequestState


class LiveRequests:
    """The requests that this router has admitted and that have not ended. Owned by the router's event loop."""

    def __init__(self) -> None:
        self._by_id: dict[str, LiveRequest] = {}
        self._queued: set[str] = set()
        """Ids of the requests that wait in the router; every new request has their number compared to a limit."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LiveRequest]:
        """Iterate over a copy, so that requests may end meanwhile."""
        return iter(list(self._by_id.values()))

    def get(self, request_id: str) -> LiveRequest | None:
        """Return the request with an id; None if there is none."""
        return self._by_id.get(request_id)

    def of(self, tracked: Iterable[TrackedRequest]) -> list[LiveRequest]:
        """Return the requests that the admission core speaks of."""
        return [self._by_id[request.facts.request_id] for request in tracked]

    def file(self, request: LiveRequest) -> None:
        """Keep a request, or note that its state has changed."""
        self._by_id[request.request_id] = request
        if request.state is RequestState.QUEUED:
            self._queued.add(request.request_id)
        else:
            self._queued.discard(request.request_id)

    def remove(self, request: LiveRequest) -> None:
        """Forget a request that has ended."""
        self._by_id.pop(request.request_id, None)
        self._queued.discard(request.request_id)

    def queued_count(self) -> int:
        """Return the number of requests that wait in the router."""
        return len(self._queued)
