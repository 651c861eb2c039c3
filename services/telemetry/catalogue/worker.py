"""Metrics of a worker under this project's names."""

from __future__ import annotations

from services.telemetry.catalogue.metric import WORKERS, Kind, Metric, Process

STATE = "slos.state"
OUTCOME = "slos.outcome"
REGIME = "slos.regime"
WITHIN = "slos.within_bound"
KIND = "slos.kind"

DURATION_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.5, 5.0),
)
ERROR_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)

WORKER_REQUESTS = Metric("slos.worker.requests", Kind.GAUGE, "{request}", "Requests its engine has.", WORKERS)
WORKER_SESSIONS = Metric("slos.worker.sessions", Kind.GAUGE, "{router}", "Routers that are connected.", WORKERS)
WORKER_REFUSED = Metric(
    "slos.worker.refused",
    Kind.COUNTER,
    "{request}",
    "Requests not taken: not_accepting (it drains or is full), invalid, or engine (it failed on them).",
    WORKERS,
    (KIND,),
)
KV_BLOCKS = Metric(
    "slos.kv.blocks",
    Kind.GAUGE,
    "{block}",
    "KV blocks: total; used, by running requests and leases; leased, of these; stranded, of the leased those whose "
    "router is gone or has given them up, and that the engine has yet to free.",
    WORKERS,
    (STATE,),
)
KV_LEASES_CLOSED = Metric(
    "slos.kv.leases.closed",
    Kind.COUNTER,
    "{lease}",
    "Leases on finished prompts by their end: pulled, released or expired. An expired one was never asked for.",
    (Process.PREFILL,),
    (OUTCOME,),
)
KV_PULL_BYTES = Metric("slos.kv.pull.bytes", Kind.COUNTER, "By", "KV caches pulled.", (Process.DECODE,))
KV_PULL_DURATION = Metric(
    "slos.kv.pull.duration",
    Kind.HISTOGRAM,
    "s",
    "Reading one KV cache over the fabric.",
    (Process.DECODE,),
    (),
    DURATION_BUCKETS,
)
STEP_DURATION = Metric(
    "slos.engine.step.duration",
    Kind.HISTOGRAM,
    "s",
    "Engine steps; `prefill` are those with any part of a prompt in them.",
    WORKERS,
    (REGIME,),
    DURATION_BUCKETS,
)
STEP_PREDICTION_ERROR = Metric(
    "slos.engine.step.prediction_error",
    Kind.HISTOGRAM,
    "1",
    "How far the engine's own expectation of a step was off, relative to what the step took.",
    WORKERS,
    (REGIME,),
    ERROR_BUCKETS,
)
STEPS_FORETOLD = Metric(
    "slos.engine.steps.foretold",
    Kind.COUNTER,
    "{step}",
    "Steps that the engine had an expectation of, by whether they took no longer than its bound for 99 % of them.",
    WORKERS,
    (WITHIN,),
)
COMPOSE_TIME = Metric("slos.engine.compose.time", Kind.COUNTER, "s", "Time spent composing steps.", WORKERS)
ENGINE_HELD = Metric(
    "slos.engine.held", Kind.COUNTER, "{request}", "Times that a running request sat a step out for others.", WORKERS
)
CONTRACTS_UNUSABLE = Metric(
    "slos.engine.contracts.unusable",
    Kind.COUNTER,
    "{request}",
    "Requests that the engine treats as best effort for want of a contract, or of one that makes sense.",
    WORKERS,
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
