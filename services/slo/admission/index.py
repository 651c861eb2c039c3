"""Every admitted request, found by its id and by the workers that it is, or will be, on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from services.slo.admission.requests import Progress, TrackedRequest, context_tokens

_Index = defaultdict[str, dict[str, TrackedRequest]]

MOST_CHANGES = 256
"""Changes remembered for each worker; after more of them its commitments are counted afresh."""


@dataclass(slots=True)
class _Filed:
    """Where a request was filed, and what it counted for there."""

    decode_worker_id: str
    places: list[dict[str, TrackedRequest]]
    context_tokens: int
    decoding: bool


class RequestIndex:
    """Finds requests by worker and progress. A request is filed again whenever either changes.

    All answers come in the order in which requests were filed, or by rank, so that a replay gives the same ones.
    """

    def __init__(self) -> None:
        self._all: dict[str, TrackedRequest] = {}
        self._queued: dict[str, TrackedRequest] = {}
        self._prefilling: _Index = defaultdict(dict)
        self._awaiting: _Index = defaultdict(dict)
        self._decoding: _Index = defaultdict(dict)
        self._filed: dict[str, _Filed] = {}
        self._decoding_tokens: defaultdict[str, int] = defaultdict(int)
        self._changed: dict[str, dict[str, None]] = {}
        """Requests about which something changed since their decode worker was last asked for changes."""

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[TrackedRequest]:
        """Iterate over a copy, so that requests may be filed and removed meanwhile."""
        return iter(list(self._all.values()))

    def get(self, request_id: str) -> TrackedRequest | None:
        return self._all.get(request_id)

    def file(self, request: TrackedRequest) -> None:
        """Find the request from now on by its progress and its workers as they are."""
        request_id, decode_worker_id = request.facts.request_id, request.decode_worker_id
        self._unfile(request_id)
        self._note(decode_worker_id, request_id)
        places = [self._all, self._decoding[decode_worker_id]]
        if request.progress is Progress.QUEUED:
            places += [self._queued, self._awaiting[request.prompt_worker_id]]
        elif request.progress is Progress.PREFILLING:
            places.append(self._prefilling[request.prompt_worker_id])
        for place in places:
            place[request_id] = request
        tokens = context_tokens(request)
        self._filed[request_id] = _Filed(decode_worker_id, places, tokens, request.progress is Progress.DECODING)
        self._decoding_tokens[decode_worker_id] += tokens

    def grew(self, worker_id: str, tokens: int) -> None:
        """Count so many new tokens of requests that are filed as decoding on that worker."""
        self._decoding_tokens[worker_id] += tokens

    def remove(self, request_id: str) -> None:
        """Find the request no longer; unknown ones are ignored."""
        self._unfile(request_id)

    def take_changes(self, worker_id: str) -> dict[str, None] | None:
        """Return requests that came to a decode worker, left it or changed since the last call.

        None: nobody asked before, or too much changed; all of them are to be looked at.
        """
        changes = self._changed.get(worker_id)
        self._changed[worker_id] = {}
        return None if changes is None or len(changes) > MOST_CHANGES else changes

    def forget(self, worker_id: str) -> None:
        """Drop what is kept for a worker that is gone."""
        self._changed.pop(worker_id, None)
        if not self.decoding_count(worker_id):
            self._decoding.pop(worker_id, None)
            self._decoding_tokens.pop(worker_id, None)

    def queued(self) -> list[TrackedRequest]:
        """Return the requests that wait in the router, by rank."""
        return sorted(self._queued.values(), key=_rank_s)

    def queued_count(self) -> int:
        return len(self._queued)

    def prefilling(self, worker_id: str) -> list[TrackedRequest]:
        """Return the prompts that a worker was given and has not finished, by rank."""
        return _by_rank(self._prefilling, worker_id)

    def awaiting(self, worker_id: str) -> list[TrackedRequest]:
        """Return the prompts that wait in the router for a worker, by rank."""
        return _by_rank(self._awaiting, worker_id)

    def decoding(self, worker_id: str) -> list[TrackedRequest]:
        """Return the requests that decode on a worker or will, from the moment at which they are placed there."""
        return list(self._decoding[worker_id].values()) if worker_id in self._decoding else []

    def decoding_tokens(self, worker_id: str) -> int:
        """Return the sum of the contexts of `decoding`, as long as they are now."""
        return self._decoding_tokens.get(worker_id, 0)

    def decoding_count(self, worker_id: str) -> int:
        return len(self._decoding[worker_id]) if worker_id in self._decoding else 0

    def prefilling_count(self, worker_id: str) -> int:
        return len(self._prefilling[worker_id]) if worker_id in self._prefilling else 0

    def awaiting_count(self, worker_id: str) -> int:
        return len(self._awaiting[worker_id]) if worker_id in self._awaiting else 0

    def _unfile(self, request_id: str) -> None:
        filed = self._filed.pop(request_id, None)
        if filed is None:
            return
        self._note(filed.decode_worker_id, request_id)
        # What a request that was filed as decoding has grown by since was counted by `grew`.
        tokens = context_tokens(self._all[request_id]) if filed.decoding else filed.context_tokens
        self._decoding_tokens[filed.decode_worker_id] -= tokens
        for place in filed.places:
            place.pop(request_id, None)

    def _note(self, worker_id: str, request_id: str) -> None:
        changes = self._changed.get(worker_id)
        if changes is not None and len(changes) <= MOST_CHANGES:
            changes[request_id] = None


def _rank_s(request: TrackedRequest) -> float:
    return request.rank_s


def _by_rank(index: _Index, worker_id: str) -> list[TrackedRequest]:
    return sorted(index[worker_id].values(), key=_rank_s) if worker_id in index else []
