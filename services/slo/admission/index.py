"""Every admitted request, found by its id and by the workers that it is, or will be, on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.slo.admission.requests import Progress, TrackedRequest, context_tokens

MOST_CHANGES = 256
"""Changes remembered for each worker; after more of them its commitments are counted afresh."""


_NOBODY: Mapping[str, TrackedRequest] = {}


class _ByWorker:
    """Requests by worker. A worker without requests takes no memory: workers come back under new ids for ever."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: dict[str, dict[str, TrackedRequest]] = {}

    def of(self, worker_id: str) -> Mapping[str, TrackedRequest]:
        """Return the requests of a worker by id, in the order in which they were added."""
        return self._requests.get(worker_id, _NOBODY)

    def add(self, worker_id: str, request_id: str, request: TrackedRequest) -> None:
        requests = self._requests.get(worker_id)
        if requests is None:
            requests = self._requests[worker_id] = {}
        requests[request_id] = request

    def remove(self, worker_id: str, request_id: str) -> bool:
        """Take a request from a worker. Returns whether the worker has others."""
        requests = self._requests[worker_id]
        del requests[request_id]
        if not requests:
            del self._requests[worker_id]
        return bool(requests)


@dataclass(slots=True)
class _Filed:
    """Where a request was filed, and what it counted for there."""

    decode_worker_id: str
    prompt_worker_id: str
    progress: Progress
    context_tokens: int


class RequestIndex:
    """Finds requests by worker and progress. A request is filed again whenever either changes.

    All answers come in the order in which requests were filed, or by rank, so that a replay gives the same ones.
    """

    def __init__(self) -> None:
        self._all: dict[str, TrackedRequest] = {}
        self._queued: dict[str, TrackedRequest] = {}
        self._prefilling = _ByWorker()
        self._awaiting = _ByWorker()
        self._decoding = _ByWorker()
        self._filed: dict[str, _Filed] = {}
        self._decoding_tokens: dict[str, int] = {}
        """Sum of the contexts on each worker that has requests in `_decoding`."""
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
        prompt_worker_id, progress = request.prompt_worker_id, request.progress
        self._unfile(request_id)
        self._note(decode_worker_id, request_id)
        self._all[request_id] = request
        self._decoding.add(decode_worker_id, request_id, request)
        if progress is Progress.QUEUED:
            self._queued[request_id] = request
            self._awaiting.add(prompt_worker_id, request_id, request)
        elif progress is Progress.PREFILLING:
            self._prefilling.add(prompt_worker_id, request_id, request)
        tokens = context_tokens(request)
        self._filed[request_id] = _Filed(decode_worker_id, prompt_worker_id, progress, tokens)
        self._decoding_tokens[decode_worker_id] = self._decoding_tokens.get(decode_worker_id, 0) + tokens

    def grew(self, worker_id: str, tokens: int) -> None:
        """Count so many new tokens of requests that are filed as decoding on that worker."""
        if worker_id in self._decoding_tokens:
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
        """Drop what is kept for a worker that is gone; requests that are still filed there are found as before."""
        self._changed.pop(worker_id, None)

    def queued(self) -> list[TrackedRequest]:
        """Return the requests that wait in the router, by rank."""
        return _by_rank(self._queued)

    def queued_count(self) -> int:
        return len(self._queued)

    def prefilling(self, worker_id: str) -> list[TrackedRequest]:
        """Return the prompts that a worker was given and has not finished, by rank."""
        return _by_rank(self._prefilling.of(worker_id))

    def awaiting(self, worker_id: str) -> list[TrackedRequest]:
        """Return the prompts that wait in the router for a worker, by rank."""
        return _by_rank(self._awaiting.of(worker_id))

    def decoding(self, worker_id: str) -> list[TrackedRequest]:
        """Return the requests that decode on a worker or will, from the moment at which they are placed there."""
        return list(self._decoding.of(worker_id).values())

    def decoding_tokens(self, worker_id: str) -> int:
        """Return the sum of the contexts of `decoding`, as long as they are now."""
        return self._decoding_tokens.get(worker_id, 0)

    def decoding_count(self, worker_id: str) -> int:
        return len(self._decoding.of(worker_id))

    def prefilling_count(self, worker_id: str) -> int:
        return len(self._prefilling.of(worker_id))

    def awaiting_count(self, worker_id: str) -> int:
        return len(self._awaiting.of(worker_id))

    def _unfile(self, request_id: str) -> None:
        filed = self._filed.pop(request_id, None)
        if filed is None:
            return
        self._note(filed.decode_worker_id, request_id)
        request, decode_worker_id = self._all.pop(request_id), filed.decode_worker_id
        if self._decoding.remove(decode_worker_id, request_id):
            # What a request that was filed as decoding has grown by since was counted by `grew`.
            tokens = context_tokens(request) if filed.progress is Progress.DECODING else filed.context_tokens
            self._decoding_tokens[decode_worker_id] -= tokens
        else:
            del self._decoding_tokens[decode_worker_id]
        if filed.progress is Progress.QUEUED:
            del self._queued[request_id]
            self._awaiting.remove(filed.prompt_worker_id, request_id)
        elif filed.progress is Progress.PREFILLING:
            self._prefilling.remove(filed.prompt_worker_id, request_id)

    def _note(self, worker_id: str, request_id: str) -> None:
        changes = self._changed.get(worker_id)
        if changes is not None and len(changes) <= MOST_CHANGES:
            changes[request_id] = None


def _rank_s(request: TrackedRequest) -> float:
    return request.rank_s


def _by_rank(requests: Mapping[str, TrackedRequest]) -> list[TrackedRequest]:
    return sorted(requests.values(), key=_rank_s)
