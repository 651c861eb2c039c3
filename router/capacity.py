"""Whether a worker should be given one more request now."""

from __future__ import annotations

from router.cluster_view import WorkerView
from router.live_request import LiveRequest
from router.memory import MemoryPromises
from router.requests import Requests
from services.state.journal import RequestState


def prefill_room(worker: WorkerView, requests: Requests, request: LiveRequest) -> bool:
    """What has room in the plan goes to its engine at once: it orders prompts by due time, and a step that began before
    the prompt came would be lost to it. The rest waits in the router beyond one step's worth, where its place can
    still change.
    """
    if request.planned:
        return True
    given = requests.prefilling(worker.worker_id)
    tokens = sum(other.context_tokens - other.prefilled_tokens for other in given)
    return not given or tokens + request.context_tokens <= worker.facts.max_step_tokens


def decode_room(worker: WorkerView, requests: Requests, memory: MemoryPromises, request: LiveRequest) -> bool:
    """Whether a worker can hold the request at the length promised to it, beside all that is on its way there.

    What has no room in the plan does not count against what has: its engine takes its memory away.
    """
    there = [
        other
        for other in requests.decoding(worker.worker_id)
        if other.state is not RequestState.QUEUED and other is not request and (other.planned or not request.planned)
    ]
    if len(there) >= worker.facts.max_running_requests:
        return False
    return not there or memory.of_all([*there, request]) <= worker.kv_tokens
