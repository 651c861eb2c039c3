"""Whether a worker should be given one more request now."""

from __future__ import annotations

from router.admission.committed_loads import CommittedLoads
from router.cluster.cluster_view import WorkerView
from router.requests.live_request import LiveRequest
from router.requests.request_index import Requests
from services.slo.latency_forecast import may_be_in_time
from services.state.journal_entry import RequestState


def prefill_room(worker: WorkerView, requests: Requests, request: LiveRequest, now_s: float) -> bool:
    """What has room in the plan, or may be in time without, goes to its engine at once: it orders prompts by due time,
    and a step that began before the prompt came would be lost to it. The rest waits in the router beyond one step's
    worth, where its place can still change.
    """
    due_s, tokens, most = request.meter.next_due_s(), request.context_tokens, worker.facts.max_step_tokens
    if request.planned or may_be_in_time(tokens, due_s, worker.model, most, now_s):
        return True
    given = requests.prefilling(worker.worker_id)
    before = sum(other.context_tokens - other.prefilled_tokens for other in given)
    before += sum(prompts.tokens for prompts in worker.others.prompts)
    return not before or before + tokens <= most


def decode_room(worker: WorkerView, requests: Requests, holdings: CommittedLoads, request: LiveRequest) -> bool:
    """Whether a worker can hold the request at the length promised to it, beside all that is on its way there.

    What has no room in the plan does not count against what has: its engine takes its memory away.
    """
    others = worker.others
    known = holdings.of(worker.worker_id)
    counted = known.planned if request.planned else known.everyone
    most = requests.decoding_count(worker.worker_id) + others.requests
    if most <= worker.facts.max_running_requests and counted.kv_tokens() + others.tokens <= worker.kv_tokens:
        return True
    # It is among those counted, and those that have yet to be handed a worker do not stand in its way.
    there = [
        other
        for other in requests.decoding(worker.worker_id)
        if other.state is not RequestState.QUEUED and other is not request and (other.planned or not request.planned)
    ]
    if len(there) + others.requests >= worker.facts.max_running_requests:
        return False
    alone = not there and not others.requests
    return alone or holdings.memory.of_all([*there, request]) + others.tokens <= worker.kv_tokens
