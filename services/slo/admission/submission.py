"""Which of the prompts that wait in the router go to their worker now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.slo.admission.committed_loads import CommittedLoads
from services.slo.admission.index import RequestIndex
from services.slo.admission.prefixes import PrefixIndex
from services.slo.admission.requests import Progress, TrackedRequest, context_tokens
from services.slo.admission.workers import WorkerState
from services.slo.latency_forecast import may_be_in_time


@dataclass(frozen=True, slots=True)
class Submission:
    """A prompt that goes to its worker now."""

    request: TrackedRequest
    believed_cached_tokens: int
    """Tokens of the prompt that the worker is thought to have in its cache."""


def prompts_to_submit(
    worker: WorkerState,
    workers: Mapping[str, WorkerState],
    requests: RequestIndex,
    loads: CommittedLoads,
    prefixes: PrefixIndex,
    now_s: float,
) -> list[Submission]:
    """Return the prompts that wait for a worker and may go there now, in order.

    What has room in the plan goes first, then by rank. Nothing goes to a worker whose decode worker could not hold it.
    """
    chosen: list[Submission] = []
    full: set[str] = set()
    for request in sorted(requests.awaiting(worker.worker_id), key=lambda request: not request.planned):
        there = workers.get(request.decode_worker_id)
        if there is None or there.worker_id in full or not _prefill_has_room(worker, requests, request, chosen, now_s):
            continue
        if _decode_has_room(there, requests, loads, request, chosen):
            cached = dict(prefixes.holders(request.facts.blocks, worker.facts.limits.block_tokens))
            chosen.append(Submission(request, cached.get(worker.worker_id, 0)))
        else:
            full.add(there.worker_id)
    return chosen


def _prefill_has_room(
    worker: WorkerState, requests: RequestIndex, request: TrackedRequest, chosen: Sequence[Submission], now_s: float
) -> bool:
    """Return whether a worker should be given the prompt now.

    What has room in the plan, or may be in time without, goes to its engine at once: the engine orders prompts by due
    time, and a step that began before the prompt came would be lost to it. The rest waits in the router beyond one
    step's worth of tokens, where its place can still change.
    """
    tokens, most = context_tokens(request), worker.facts.limits.max_step_tokens
    if request.planned or may_be_in_time(tokens, request.next_due_s, worker.model, most, now_s):
        return True
    before = sum(context_tokens(other) - other.prefilled_tokens for other in requests.prefilling(worker.worker_id))
    before += sum(context_tokens(other.request) - other.believed_cached_tokens for other in chosen)
    before += sum(prompts.tokens for prompts in worker.others.prompts)
    return not before or before + tokens <= most


def _decode_has_room(
    worker: WorkerState,
    requests: RequestIndex,
    loads: CommittedLoads,
    request: TrackedRequest,
    chosen: Sequence[Submission],
) -> bool:
    """Return whether a worker can hold the request at the length promised to it, beside all that is on its way there.

    What has no room in the plan does not count against what has: its engine takes its memory away.
    """
    others, most = worker.others, worker.facts.limits.max_running_requests
    known = loads.of(worker.worker_id, step=worker.steps)
    counted = known.planned if request.planned else known.everyone
    kv_tokens = worker.facts.kv_tokens
    requests_there = requests.decoding_count(worker.worker_id) + others.requests
    if requests_there <= most and counted.kv_tokens() + others.tokens <= kv_tokens:
        return True
    # It is among those counted, and those that have yet to be given a worker do not stand in its way.
    going = {id(submission.request) for submission in chosen}
    there = [
        other
        for other in requests.decoding(worker.worker_id)
        if (other.progress is not Progress.QUEUED or id(other) in going)
        and other is not request
        and (other.planned or not request.planned)
    ]
    if len(there) + others.requests >= most:
        return False
    alone = not there and not others.requests
    return alone or loads.memory.of_all([*there, request]) + others.tokens <= kv_tokens
