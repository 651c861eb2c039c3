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

WORKER_REQUESTS = Metric("slos.worker.requests", Kind.GAUGE, "{request}", "Requests that the engine has.", WORKERS)
WORKER_SESSIONS = Metric(
    "slos.worker.sessions", Kind.GAUGE, "{router}", "Routers that are connected to the worker.", WORKERS
)
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
    "KV blocks by state: total; used by running requests and leases; leased, which are used too; stranded, "
    "which are leased although their router is gone or has given them up.",
    WORKERS,
    (STATE,),
)
KV_LEASES_CLOSED = Metric(
    "slos.kv.leases.closed",
    Kind.COUNTER,
    "{lease}",
    "Leases on finished prompts by their end: pulled, released or expired. An expired lease was never claimed.",
    (Process.PREFILL,),
    (OUTCOME,),
)
KV_PULL_BYTES = Metric("slos.kv.pull.bytes", Kind.COUNTER, "By", "Bytes of KV caches pulled.", (Process.DECODE,))
KV_PULL_DURATION = Metric(
    "slos.kv.pull.duration",
    Kind.HISTOGRAM,
    "s",
    "Time to read one KV cache over the fabric.",
    (Process.DECODE,),
    (),
    DURATION_BUCKETS,
)
STEP_DURATION = Metric(
    "slos.engine.step.duration",
    Kind.HISTOGRAM,
    "s",
    "Time of engine steps; steps with any part of a prompt in them count as `prefill`.",
    WORKERS,
    (REGIME,),
    DURATION_BUCKETS,
)
STEP_PREDICTION_ERROR = Metric(
    "slos.engine.step.prediction_error",
    Kind.HISTOGRAM,
    "1",
    "Error of the engine's own prediction of a step, relative to what the step took.",
    WORKERS,
    (REGIME,),
    ERROR_BUCKETS,
)
STEPS_FORETOLD = Metric(
    "slos.engine.steps.foretold",
    Kind.COUNTER,
    "{step}",
    "Steps that the engine predicted, by whether they took no longer than its bound for 99 % of steps.",
    WORKERS,
    (WITHIN,),
)
COMPOSE_TIME = Metric("slos.engine.compose.time", Kind.COUNTER, "s", "Time spent composing steps.", WORKERS)
ENGINE_HELD = Metric(
    "slos.engine.held",
    Kind.COUNTER,
    "{request}",
    "Times that a running request was left out of a step for others.",
    WORKERS,
)
CONTRACTS_UNUSABLE = Metric(
    "slos.engine.contracts.unusable",
    Kind.COUNTER,
    "{request}",
    "Requests that the engine treats as best effort because their contract is missing or malformed.",
    WORKERS,
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
