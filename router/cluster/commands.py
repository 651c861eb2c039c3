"""The commands a router gives to workers."""

from __future__ import annotations

from dataclasses import replace

from router.requests.held_lease import HeldLease
from router.requests.live_request import LiveRequest
from services import wire
from services.engine.protocol import EngineRequest
from slos_serve.v1 import worker_pb2


def submit(
    request: LiveRequest, now_s: float, promised_tokens: int, *, export_kv: bool = False, lease: HeldLease | None = None
) -> worker_pb2.SessionRequest:
    """Return the command to work on a request from where it is: its prompt and all tokens generated so far.

    Args:
        promised_tokens: number of context tokens that the request is promised memory for.
        export_kv: the worker is to hold the KV cache for another one when the prompt is computed.
        lease: the lease on the KV cache that the worker is to pull; None if it is to compute the prompt.
    """
    next_due_s, tpot_s = request.meter.next_due_s(), request.meter.current_tpot_s()
    if not request.generated and request.planned:
        next_due_s = request.rank_s
    if request.meter.missed and not request.planned:
        # There was no guarantee, and no target is left that could be met.
        next_due_s = tpot_s = None
    work = EngineRequest(
        request_id=request.request_id,
        token_ids=(*request.parsed.prompt, *request.generated),
        generated_tokens=len(request.generated),
        sampling=request.parsed.sampling,
        export_kv=export_kv,
        kv_source=None if lease is None else replace(lease.handle, lease_remaining_s=lease.remaining_s(now_s)),
        deadline_in_s=None if next_due_s is None else next_due_s - now_s,
        tpot_s=tpot_s,
        best_effort=not request.planned,
        application=request.parsed.learnt_as,
        cache_salt=request.parsed.cache_salt,
    )
    trace = request.trace
    context = ("", "") if trace is None else (trace.traceparent, trace.tracestate)
    command = worker_pb2.SessionRequest(submit=wire.submit_to_wire(work, request.attempt, *context))
    command.submit.promised_tokens = promised_tokens
    return command


def expect(request: LiveRequest, promised_tokens: int) -> worker_pb2.SessionRequest:
    """Return the command to expect a request that will be handed over later, or no longer.

    Args:
        promised_tokens: number of context tokens that the request is promised memory for; 0 if it will not come.
    """
    tpot_s = request.meter.tightest_tpot_s() if request.guaranteed else None
    message = worker_pb2.Expect(request_id=request.request_id, promised_tokens=promised_tokens, tpot_s=tpot_s)
    return worker_pb2.SessionRequest(expect=message)


def abort(request: LiveRequest) -> worker_pb2.SessionRequest:
    """Return the command to let go of the attempt under way."""
    return worker_pb2.SessionRequest(abort=worker_pb2.Abort(request_id=request.request_id, attempt=request.attempt))


def release_kv(lease_id: str) -> worker_pb2.SessionRequest:
    """Return the command to free the KV cache under a lease."""
    return worker_pb2.SessionRequest(release_kv=worker_pb2.ReleaseKv(lease_id=lease_id))
