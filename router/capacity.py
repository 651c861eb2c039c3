"""Which requests a worker has, and whether there is room for one more."""

from __future__ import annotations

from collections.abc import Iterable

from router.cluster_view import WorkerView
from router.live_request import LiveRequest
from services.state.journal import RequestState


def queued(requests: Iterable[LiveRequest]) -> list[LiveRequest]:
    """What waits in the router, in order of due time."""
    waiting = [request for request in requests if request.state is RequestState.QUEUED]
    return sorted(waiting, key=lambda request: request.due_s)


def prefilling(requests: Iterable[LiveRequest], worker_id: str) -> list[LiveRequest]:
    """The prompts that a prefill worker was given and has not finished."""
    return [
        request
        for request in requests
        if request.state is RequestState.PREFILLING and request.prefill_worker_id == worker_id
    ]


def prefill_room(worker: WorkerView, requests: Iterable[LiveRequest], request: LiveRequest) -> bool:
    """Whether a prefill worker should have this prompt now.

    Beyond one step's worth prompts wait in the router, where their order can still change. A prompt without a guarantee
    also waits for those that have one and wait for the worker's next step.
    """
    given = prefilling(requests, worker.worker_id)
    if not given:
        return True
    if sum(other.context_tokens for other in given) + request.context_tokens > worker.facts.max_step_tokens:
        return False
    return request.guaranteed or not any(
        other.guaranteed and other.submitted_s > worker.step_began_s for other in given
    )


def decode_room(worker: WorkerView, requests: Iterable[LiveRequest], request: LiveRequest) -> bool:
    """Whether a decode worker can hold the request at its full length besides all that is on its way there."""
    there = [
        other
        for other in requests
        if other.decode_worker_id == worker.worker_id and other.state is not RequestState.QUEUED
    ]
    promised = sum(other.full_tokens for other in there) + request.full_tokens
    return len(there) < worker.facts.max_running_requests and (promised <= worker.kv_tokens or not there)
