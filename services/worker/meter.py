"""Metrics of a worker's engine, recorded per step and per output, under our names and under vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import EngineStep, FinishReason, RequestOutput, Scheduling
from services.state.registry import WorkerRole
from services.telemetry.catalogue import router, vllm, worker
from services.telemetry.meters import Tally
from services.telemetry.vllm_names import ENGINE, VllmNames

if TYPE_CHECKING:
    from services.engine.protocol import Engine, EngineFacts
    from services.telemetry.process import ProcessTelemetry
    from services.worker.ledger import LedgerEntry
    from services.worker.policy import RolePolicy


class WorkerMeter:
    """Records the metrics of one engine. Calls come from the worker's event loop, scrapes from another thread."""

    def __init__(self, telemetry: ProcessTelemetry, engine: Engine, facts: EngineFacts, policy: RolePolicy) -> None:
        meters = telemetry.meters
        self._scheduling = Scheduling()
        self._compose_s = 0.0
        self._foretold = Tally(worker.STEPS_FORETOLD.labels, ("true",), ("false",))
        self._refused = Tally(worker.WORKER_REFUSED.labels, ("not_accepting",), ("invalid",), ("engine",))
        self._step_duration = meters.histogram(worker.STEP_DURATION)
        self._step_error = meters.histogram(worker.STEP_PREDICTION_ERROR)
        meters.observe(worker.STEPS_FORETOLD, self._foretold.readings)
        meters.observe(worker.WORKER_REFUSED, self._refused.readings)
        meters.observe_one(worker.COMPOSE_TIME, lambda: self._compose_s)
        meters.observe_one(worker.ENGINE_HELD, lambda: self._scheduling.held)
        meters.observe_one(
            worker.CONTRACTS_UNUSABLE,
            lambda: self._scheduling.contracts_missing + self._scheduling.contracts_malformed,
        )
        self._vllm = _VllmMeter(VllmNames(telemetry.registry, facts.model), engine, facts)
        self._leases: Tally | None = None
        if policy.role is WorkerRole.PREFILL:
            self._leases = Tally(worker.KV_LEASES_CLOSED.labels, *((outcome.value,) for outcome in LeaseOutcome))
            meters.observe(worker.KV_LEASES_CLOSED, self._leases.readings)
        self._pulled_bytes = 0
        self._recomputes = 0
        self._pull_duration = None
        if policy.role is WorkerRole.DECODE:
            self._pull_duration = meters.histogram(worker.KV_PULL_DURATION)
            meters.observe_one(worker.KV_PULL_BYTES, lambda: self._pulled_bytes)
            meters.observe_one(router.KV_RECOMPUTES, lambda: self._recomputes)

    def step(self, step: EngineStep) -> None:
        """Record an engine step: its duration, and how well it was predicted."""
        foreseen = step.scheduling
        if step.shape.tokens:
            regime = {worker.REGIME: "prefill" if step.shape.prefill_tokens else "decode"}
            self._step_duration.record(step.duration_s, regime)
            if foreseen.predicted_s > 0 and step.duration_s > 0:
                self._step_error.record(abs(foreseen.predicted_s - step.duration_s) / step.duration_s, regime)
                self._foretold.add("true" if step.duration_s <= foreseen.bound_s else "false")
        self._compose_s += foreseen.compose_s
        self._vllm.step(step, self._scheduling)
        self._scheduling = foreseen

    def output(self, entry: LedgerEntry, output: RequestOutput, now_s: float) -> None:
        """Record an output of a request, and note it in the ledger entry of the request."""
        timings = output.timings
        if timings is not None:
            if timings.kv_pull is not None and self._pull_duration is not None:
                self._pulled_bytes += timings.kv_pull.kv_bytes
                self._pull_duration.record(timings.kv_pull.transfer_s)
            self._recomputes += bool(timings.kv_recompute_reason)
        self._vllm.output(entry, output, now_s)
        entry.note(output, now_s)
        if output.finish_reason is not None:
            self._vllm.ended(entry, output.finish_reason, now_s)

    def refused(self, kind: str) -> None:
        """Count a request that the worker did not take or gave back."""
        self._refused.add(kind)

    def lease_closed(self, outcome: LeaseOutcome) -> None:
        """Count a KV lease that ended, if the role has leases."""
        if self._leases is not None:
            self._leases.add(outcome.value)


class _VllmMeter:
    """The metrics that vLLM's own server would show for this engine."""

    def __init__(self, names: VllmNames, engine: Engine, facts: EngineFacts) -> None:
        names.gauge(vllm.RUNNING, lambda: engine.load().running_requests)
        names.gauge(vllm.WAITING, lambda: engine.load().waiting_requests)
        names.gauge(vllm.KV_USAGE, lambda: engine.load().kv_blocks_used / max(1, facts.kv_blocks_total))
        names.gauge(
            vllm.CACHE_CONFIG,
            lambda: 1,
            engine=ENGINE,
            block_size=str(facts.compatibility.block_tokens),
            num_gpu_blocks=str(facts.kv_blocks_total),
            cache_dtype=facts.compatibility.kv_cache_dtype,
        )
        self._prompt_tokens = names.counter(vllm.PROMPT_TOKENS)
        self._generation_tokens = names.counter(vllm.GENERATION_TOKENS)
        self._preemptions = names.counter(vllm.PREEMPTIONS)
        self._prefix_queries = names.counter(vllm.PREFIX_QUERIES)
        self._prefix_hits = names.counter(vllm.PREFIX_HITS)
        self._success = names.counters(
            vllm.REQUEST_SUCCESS, vllm.FINISHED_REASON, tuple(reason.value for reason in FinishReason)
        )
        self._drafted = names.counter(vllm.DRAFT_TOKENS)
        self._accepted = names.counter(vllm.ACCEPTED_TOKENS)
        self._ttft = names.histogram(vllm.TTFT)
        self._itl = names.histogram(vllm.ITL)
        self._tpot = names.histogram(vllm.TPOT)
        self._e2e = names.histogram(vllm.E2E)
        self._queue = names.histogram(vllm.QUEUE)
        self._prefill = names.histogram(vllm.PREFILL)
        self._decode = names.histogram(vllm.DECODE)
        self._step_tokens = names.histogram(vllm.STEP_TOKENS)

    def step(self, step: EngineStep, before: Scheduling) -> None:
        if step.shape.tokens:
            self._step_tokens.observe(step.shape.tokens)
        for counter, now, then in (
            (self._preemptions, step.scheduling.preempted, before.preempted),
            (self._drafted, step.scheduling.drafted, before.drafted),
            (self._accepted, step.scheduling.accepted, before.accepted),
        ):
            if now > then:
                counter.inc(now - then)

    def output(self, entry: LedgerEntry, output: RequestOutput, now_s: float) -> None:
        if output.timings is not None:
            self._queue.observe(output.timings.wait_s)
            if entry.computes_prompt:
                self._prompt_tokens.inc(entry.prompt_tokens)
                self._prefix_queries.inc(entry.prompt_tokens)
                self._prefix_hits.inc(output.timings.cached_tokens)
                self._prefill.observe(output.timings.run_s)
        if not output.token_ids:
            return
        self._generation_tokens.inc(len(output.token_ids))
        if entry.tokens:
            self._itl.observe(now_s - entry.last_s)
        elif entry.computes_prompt:
            self._ttft.observe(now_s - entry.arrived_s)

    def ended(self, entry: LedgerEntry, reason: FinishReason, now_s: float) -> None:
        self._success[reason.value].inc()
        self._e2e.observe(now_s - entry.arrived_s)
        if entry.tokens:
            decode_s = entry.last_s - entry.first_s
            self._decode.observe(decode_s)
            if entry.tokens > 1:
                self._tpot.observe(decode_s / (entry.tokens - 1))
