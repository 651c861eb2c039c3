"""Observation of a worker: its metrics, its spans, and the log lines that are about one request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import EngineStep, FinishReason, RequestOutput
from services.telemetry.catalogue import worker as catalogue
from services.telemetry.logs import about
from services.telemetry.traces import trace_id_of
from services.worker import spans
from services.worker.meter import WorkerMeter

if TYPE_CHECKING:
    from services.engine.protocol import Engine, EngineFacts
    from services.telemetry.meters import Reading
    from services.telemetry.process import ProcessTelemetry
    from services.worker.ledger import LedgerEntry, RequestLedger
    from services.worker.policy import RolePolicy
    from services.worker.sessions import SessionBook

_log = logging.getLogger(__name__)


class WorkerObserver:
    """Records what happens to requests of one worker. All calls come from the worker's event loop."""

    def __init__(
        self, telemetry: ProcessTelemetry, engine: Engine, facts: EngineFacts, policy: RolePolicy, worker_id: str
    ) -> None:
        self._telemetry = telemetry
        self._engine = engine
        self._policy = policy
        self._worker_id = worker_id
        self._traces = telemetry.traces
        self._meter = WorkerMeter(telemetry, engine, facts, policy)

    def watch(self, ledger: RequestLedger, sessions: SessionBook) -> None:
        """Register the metrics that are read whenever Prometheus scrapes."""
        meters = self._telemetry.meters

        def blocks() -> list[Reading]:
            load = self._engine.load()
            wanted = self._policy.leased_blocks(frozenset(session.key for session in sessions))
            states = {
                "total": load.kv_blocks_total,
                "used": load.kv_blocks_used,
                "leased": load.kv_blocks_leased,
                "stranded": max(0, load.kv_blocks_leased - wanted),
            }
            return [(count, {catalogue.STATE: state}) for state, count in states.items()]

        meters.observe(catalogue.KV_BLOCKS, blocks)
        meters.observe_one(catalogue.WORKER_REQUESTS, lambda: len(ledger))
        meters.observe_one(catalogue.WORKER_SESSIONS, lambda: len(sessions))

    def step(self, step: EngineStep) -> None:
        """Record an engine step."""
        self._meter.step(step)

    def output(self, entry: LedgerEntry, output: RequestOutput, now_s: float) -> None:
        """Record an output of a request, and with its last output the end of the request on this worker."""
        reason = "" if output.timings is None else output.timings.kv_recompute_reason
        if reason:
            ids = about(entry.request_id, trace_id_of(entry.traceparent))
            _log.warning("request %s: KV cache computed again: %s", entry.request_id, reason, extra=ids)
        self._meter.output(entry, output, now_s)
        if output.finish_reason is not None:
            self._trace(entry, now_s, output.finish_reason.value)

    def rejected(self, entry: LedgerEntry, detail: str, now_s: float) -> None:
        """Record that the engine did not take a request."""
        self._trace(entry, now_s, FinishReason.ERROR.value, detail)

    def refused(self, kind: str) -> None:
        """Count a request that the worker did not take or gave back.

        Args:
            kind: one of `event_delivery.FAILURE_NAMES`.
        """
        self._meter.refused(kind)

    def lease_closed(self, outcome: LeaseOutcome) -> None:
        """Count a KV lease that ended."""
        self._meter.lease_closed(outcome)

    def _trace(self, entry: LedgerEntry, now_s: float, reason: str, error: str = "") -> None:
        if not entry.traceparent:
            return
        trace = self._traces.begin(entry.traceparent, entry.tracestate)
        if self._traces.wants(trace):
            whole = spans.whole(entry, self._worker_id, self._policy.role, now_s, reason)
            self._traces.end(trace, whole, spans.parts(entry), error=error)
