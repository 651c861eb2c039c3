"""Every request of this router, found by its id and by the workers it is, or will be, on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from router.requests.live_request import LiveRequest
from services.state.journal_entry import RequestState

_Index = defaultdict[str, dict[str, LiveRequest]]

MOST_CHANGES = 256
"""Changes remembered of each worker; whoever asks after more looks at everything."""


@dataclass(slots=True)
class _Filed:
    decode_worker_id: str
    places: list[dict[str, LiveRequest]]
    """Where it is found."""
    context_tokens: int


class Requests:
    """File a request again whenever its state or its placement changes: the other answers depend on it."""

    def __init__(self) -> None:
        self._all: dict[str, LiveRequest] = {}
        self._queued: dict[str, LiveRequest] = {}
        self._prefilling: _Index = defaultdict(dict)
        self._awaiting: _Index = defaultdict(dict)
        self._decoding: _Index = defaultdict(dict)
        self._filed: dict[str, _Filed] = {}
        self._decoding_tokens: defaultdict[str, int] = defaultdict(int)
        self._changed: dict[str, set[str]] = {}
        """By decode worker: requests about which something changed since it was asked after."""

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[LiveRequest]:
        """Safe against changes while it lasts."""
        return iter(list(self._all.values()))

    def get(self, request_id: str) -> LiveRequest | None:
        return self._all.get(request_id)

    def file(self, request: LiveRequest) -> None:
        self._unfile(request.request_id)
        self.changed(request)
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
        self._filed[request.request_id] = _Filed(request.decode_worker_id, places, request.context_tokens)
        self._decoding_tokens[request.decode_worker_id] += request.context_tokens

    def grew(self, request: LiveRequest, tokens: int) -> None:
        """It has so many tokens more."""
        filed = self._filed[request.request_id]
        filed.context_tokens += tokens
        self._decoding_tokens[filed.decode_worker_id] += tokens

    def remove(self, request: LiveRequest) -> None:
        self._unfile(request.request_id)

    def changed(self, request: LiveRequest) -> None:
        """Something changed that matters to the worker where it decodes, or will."""
        self._note(request.decode_worker_id, request.request_id)

    def take_changes(self, worker_id: str) -> set[str] | None:
        """Requests that came to a decode worker, left it or changed since the last call; None: look at all of them."""
        changes = self._changed.get(worker_id)
        self._changed[worker_id] = set()
        return None if changes is None or len(changes) > MOST_CHANGES else changes

    def forget(self, worker_id: str) -> None:
        """The worker is gone."""
        self._changed.pop(worker_id, None)
        if not self.decoding_count(worker_id):
            self._decoding.pop(worker_id, None)
            self._decoding_tokens.pop(worker_id, None)

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

    def decoding_tokens(self, worker_id: str) -> int:
        """The contexts of those together, as long as they are now."""
        return self._decoding_tokens.get(worker_id, 0)

    def decoding_count(self, worker_id: str) -> int:
        return len(self._decoding[worker_id]) if worker_id in self._decoding else 0

    def prefilling_count(self, worker_id: str) -> int:
        return len(self._prefilling[worker_id]) if worker_id in self._prefilling else 0

    def _unfile(self, request_id: str) -> None:
        filed = self._filed.pop(request_id, None)
        if filed is None:
            return
        self._note(filed.decode_worker_id, request_id)
        self._decoding_tokens[filed.decode_worker_id] -= filed.context_tokens
        for place in filed.places:
            place.pop(request_id, None)

    def _note(self, worker_id: str, request_id: str) -> None:
        changes = self._changed.get(worker_id)
        if changes is not None and len(changes) <= MOST_CHANGES:
            changes.add(request_id)


def _by_due(index: _Index, worker_id: str) -> list[LiveRequest]:
    return sorted(index[worker_id].values(), key=lambda request: request.due_s) if worker_id in index else []
