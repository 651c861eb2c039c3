"""The commands a router gives to workers."""

from __future__ import annotations

from dataclasses import replace

from router.requests.live_request import Lease, LiveRequest
from services import wire
from services.engine.protocol import EngineRequest
from slos_serve.v1 import worker_pb2


def submit(
    request: LiveRequest, now_s: float, promised_tokens: int, *, export_kv: bool = False, lease: Lease | None = None
) -> worker_pb2.SessionRequest:
    """Work on `request` from where it is: prompt and all tokens generated so far.

    Args:
        promised_tokens: context that it is promised memory for.
    """
    next_due_s, tpot_s = request.meter.next_due_s(), request.meter.current_tpot_s()
    if not request.generated and request.planned:
        next_due_s = request.due_s
    if request.meter.missed and not request.planned:
        # Nobody promised it, and there is nothing left to keep.
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
        application=request.parsed.application,
    )
    trace = request.trace
    context = ("", "") if trace is None else (trace.traceparent, trace.tracestate)
    command = worker_pb2.SessionRequest(submit=wire.submit_to_wire(work, request.attempt, *context))
    command.submit.promised_tokens = promised_tokens
    return command


def expect(request: LiveRequest, promised_tokens: int) -> worker_pb2.SessionRequest:
    """It will be handed over to the worker later; with 0 tokens, not any more."""
    tpot_s = request.meter.tightest_tpot_s() if request.guaranteed else None
    message = worker_pb2.Expect(request_id=request.request_id, promised_tokens=promised_tokens, tpot_s=tpot_s)
    return worker_pb2.SessionRequest(expect=message)


def abort(request: LiveRequest) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(abort=worker_pb2.Abort(request_id=request.request_id, attempt=request.attempt))


def release_kv(lease_id: str) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(release_kv=worker_pb2.ReleaseKv(lease_id=lease_id))
