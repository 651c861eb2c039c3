"""Trace spans of one attempt at a request on a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.telemetry.traces import Part

if TYPE_CHECKING:
    from services.state.registry import WorkerRole
    from services.worker.ledger import LedgerEntry

WORKER, ROLE = "slos.worker", "slos.role"
REQUEST_ID = "gen_ai.request.id"
ATTEMPT = "slos.attempt"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
FINISH_REASON = "gen_ai.response.finish_reason"


def whole(entry: LedgerEntry, worker_id: str, role: WorkerRole, now_s: float, reason: str) -> Part:
    """Build the span from the arrival of an attempt at the worker to its last event there."""
    return Part(
        f"worker.{role.value}",
        entry.arrived_s,
        now_s,
        {
            WORKER: worker_id,
            ROLE: role.value,
            REQUEST_ID: entry.request_id,
            ATTEMPT: entry.attempt,
            INPUT_TOKENS: entry.prompt_tokens,
            OUTPUT_TOKENS: entry.tokens,
            FINISH_REASON: reason,
        },
    )


def parts(entry: LedgerEntry) -> list[Part]:
    """Build the spans of the phases that an attempt went through: wait, KV pull, prefill, decode."""
    timings = entry.timings
    if timings is None:
        return []
    ready_s = entry.arrived_s + timings.wait_s
    found = [Part("engine.wait", entry.arrived_s, ready_s)]
    pull = timings.kv_pull
    if pull is not None:
        # The engine says how long it read and when it was ready: reading is what made it so.
        began_s = max(entry.arrived_s, ready_s - pull.transfer_s)
        found.append(Part("kv.pull", began_s, ready_s, {"slos.kv.bytes": pull.kv_bytes}))
    first_s = ready_s
    if pull is None:
        first_s += timings.run_s
        attributes: dict[str, str | bool | int | float] = {CACHED_TOKENS: timings.cached_tokens}
        if timings.kv_recompute_reason:
            attributes["slos.kv.recompute_reason"] = timings.kv_recompute_reason
        found.append(Part("engine.prefill", ready_s, first_s, attributes))
    if entry.tokens and entry.last_s > first_s and (pull is not None or entry.tokens > 1):
        found.append(Part("engine.decode", first_s, entry.last_s, {OUTPUT_TOKENS: entry.tokens}))
    return found
