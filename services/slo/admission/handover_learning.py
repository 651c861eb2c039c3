"""What hand-overs of KV caches teach about the next ones."""

from __future__ import annotations

from services.slo.admission.index import RequestIndex
from services.slo.admission.requests import Progress, TrackedRequest, context_tokens
from services.slo.admission.workers import WorkerState
from services.slo.transfer import Handovers

LEARN_HANDOVERS_EVERY_S = 0.02
"""Hand-overs to a worker that follow each other faster than this, in seconds, tell nothing new."""


def learn_handover(
    handovers: Handovers,
    worker: WorkerState,
    requests: RequestIndex,
    request: TrackedRequest,
    kv_bytes: int,
    transfer_s: float,
    wait_s: float,
    now_s: float,
) -> None:
    """Let `handovers` learn from a request that goes on where its KV cache was pulled to.

    Args:
        worker: where it decodes.
        transfer_s: seconds that the pull took.
        wait_s: seconds from the hand-over to the first step there, the transfer included.
    """
    if now_s - worker.learnt_handover_s < LEARN_HANDOVERS_EVERY_S:
        return
    worker.learnt_handover_s = now_s
    others = [
        other
        for other in requests.decoding(worker.worker_id)
        if other.progress is Progress.DECODING and other is not request
    ]
    tokens = sum(context_tokens(other) for other in others) + context_tokens(request)
    handovers.observe(
        request.prompt_worker_id,
        worker.worker_id,
        kv_bytes,
        transfer_s,
        wait_s,
        worker.model.decode_step_s(len(others) + 1, tokens),
        busy=bool(others),
    )
