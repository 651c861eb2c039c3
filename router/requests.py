"""Every request of this router, found by its id and by the workers it is, or will be, on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from router.live_request import LiveRequest
from services.state.journal import RequestState

_Index = defaultdict[str, dict[str, LiveRequest]]


class Requests:
    """File a request again whenever its state or its placement changes: the other answers depend on it."""

    def __init__(self) -> None:
        self._all: dict[str, LiveRequest] = {}
        self._queued: dict[str, LiveRequest] = {}
        self._prefilling: _Index = defaultdict(dict)
        self._awaiting: _Index = defaultdict(dict)
        self._decoding: _Index = defaultdict(dict)
        self._filed: dict[str, list[dict[str, LiveRequest]]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[LiveRequest]:
        """Safe against changes while it lasts."""
        return iter(list(self._all.values()))

    def get(self, request_id: str) -> LiveRequest | None:
        return self._all.get(request_id)

    def file(self, request: LiveRequest) -> None:
        self._unfile(request.request_id)
        places = [self._all, self._decoding[request.decode_worker_id]]
        match request.state:
            case RequestState.QUEUED:
                places += [self._queued, self._awaiting[request.placement.prefill_worker_id]]
            case RequestState.PREFILLING:
                places.append(self._prefilling[request.prefill_worker_id])
            case _:
                pass
        for place in places:
            place[request.request_id] = request
        self._filed[request.request_id] = places

    def remove(self, request: LiveRequest) -> None:
        self._unfile(request.request_id)

    def queued(self) -> list[LiveRequest]:
        """What waits in the router, in order of due time."""
        return sorted(self._queued.values(), key=lambda request: request.due_s)

    def queued_count(self) -> int:
        return len(self._queued)

    def prefilling(self, worker_id: str) -> list[LiveRequest]:
        """The prompts that a worker was given and has not finished, in order of due time."""
        return _by_due(self._prefilling, worker_id)

    def awaiting(self, worker_id: str) -> list[LiveRequest]:
        """The prompts that wait in the router for this worker, in order of due time."""
        return _by_due(self._awaiting, worker_id)

    def decoding(self, worker_id: str) -> list[LiveRequest]:
        """What decodes on a worker or will, from the moment it is placed there."""
        return list(self._decoding[worker_id].values()) if worker_id in self._decoding else []

    def _unfile(self, request_id: str) -> None:
        for place in self._filed.pop(request_id, ()):
            place.pop(request_id, None)


def _by_due(index: _Index, worker_id: str) -> list[LiveRequest]:
    return sorted(index[worker_id].values(), key=lambda request: request.due_s) if worker_id in index else []
