"""The commands a router gives to workers."""

from __future__ import annotations

from dataclasses import replace

from router.live_request import Lease, LiveRequest
from services.engine.protocol import EngineRequest
from services.rpc import wire
from slos_serve.v1 import worker_pb2


def submit(
    request: LiveRequest, now_s: float, *, export_kv: bool = False, lease: Lease | None = None
) -> worker_pb2.SessionRequest:
    """Work on `request` from where it is: prompt and all tokens generated so far."""
    next_due_s = request.meter.next_due_s()
    if not request.generated and request.planned:
        next_due_s = request.due_s
    work = EngineRequest(
        request_id=request.request_id,
        token_ids=(*request.parsed.prompt, *request.generated),
        generated_tokens=len(request.generated),
        sampling=request.parsed.sampling,
        export_kv=export_kv,
        kv_source=None if lease is None else replace(lease.handle, lease_remaining_s=lease.remaining_s(now_s)),
        deadline_in_s=None if next_due_s is None else next_due_s - now_s,
        tpot_s=request.meter.current_tpot_s(),
        best_effort=not request.planned,
        application=request.parsed.application,
    )
    trace = request.trace
    context = ("", "") if trace is None else (trace.traceparent, trace.tracestate)
    return worker_pb2.SessionRequest(submit=wire.submit_to_wire(work, request.attempt, *context))


def abort(request: LiveRequest) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(abort=worker_pb2.Abort(request_id=request.request_id, attempt=request.attempt))


def release_kv(lease_id: str) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(release_kv=worker_pb2.ReleaseKv(lease_id=lease_id))
