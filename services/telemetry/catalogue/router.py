"""Metrics of a router."""

from __future__ import annotations

from services.telemetry.catalogue.metric import Kind, Metric, Process

ROUTER = (Process.ROUTER,)
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
ERROR = "error.type"
TOKENS_OF = "gen_ai.token.type"
PROFILE = "slos.profile"
TENANT = "slos.tenant"
PHASE = "slos.phase"
REASON = "slos.reason"
BINDING = "slos.binding"
QUOTA = "slos.quota"
OUTCOME = "slos.outcome"
FIGURE = "slos.figure"
WITHIN = "slos.within_bound"
WORKER = "slos.worker"
ROLE = "slos.role"
HEALTH = "slos.health"

REQUEST_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TPOT_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.019, 0.02, 0.021, 0.0225, 0.025, 0.03, 0.035),
    *(0.04, 0.045, 0.0475, 0.05, 0.0525, 0.055, 0.06, 0.075, 0.09, 0.1, 0.11, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4),
    *(0.5, 0.75, 1.0, 2.5),
)
"""Bucket bounds of TPOT in seconds: those of OpenTelemetry's convention, and more around the rates that contracts ask
for, so that 20 ms kept can be told from 20 ms missed."""
LOOP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
ROUND_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1)

REQUEST_DURATION = Metric(
    "gen_ai.server.request.duration",
    Kind.HISTOGRAM,
    "s",
    "Time from the arrival of an admitted request to its end, whatever its end; `error.type` only if it failed.",
    ROUTER,
    (OPERATION, PROVIDER, MODEL, PROFILE, ERROR),
    REQUEST_BUCKETS,
)
TIME_TO_FIRST_TOKEN = Metric(
    "gen_ai.server.time_to_first_token",
    Kind.HISTOGRAM,
    "s",
    "Time from arrival to the first token, queueing included, of requests that ran to their end.",
    ROUTER,
    (OPERATION, PROVIDER, MODEL, PROFILE),
    TTFT_BUCKETS,
)
TIME_PER_OUTPUT_TOKEN = Metric(
    "gen_ai.server.time_per_output_token",
    Kind.HISTOGRAM,
    "s",
    "Mean time between tokens after the first, per request that ran to its end; benchmark tools call it TPOT.",
    ROUTER,
    (OPERATION, PROVIDER, MODEL, PROFILE),
    TPOT_BUCKETS,
)
REQUIRED_TIME_PER_OUTPUT_TOKEN = Metric(
    "slos.required_time_per_output_token",
    Kind.HISTOGRAM,
    "s",
    "Smallest constant TPOT that every token of the slowest stage kept; it decides whether a guarantee was kept.",
    ROUTER,
    (PROFILE,),
    TPOT_BUCKETS,
)
REQUESTS_RECEIVED = Metric("slos.requests.received", Kind.COUNTER, "{request}", "Calls of `Generate`.", ROUTER)
REQUESTS_ENDED = Metric(
    "slos.requests.ended",
    Kind.COUNTER,
    "{request}",
    "Admitted requests by their end: done, cancelled or failed.",
    ROUTER,
    (OUTCOME,),
)
REQUESTS_REFUSED = Metric(
    "slos.requests.refused",
    Kind.COUNTER,
    "{request}",
    "Requests not admitted, by the reason in their `google.rpc.ErrorInfo` and, if the contract was the reason, "
    "by the resource that binds.",
    ROUTER,
    (REASON, BINDING),
)
QUOTA_REFUSALS = Metric(
    "slos.quota.refusals",
    Kind.COUNTER,
    "{call}",
    "Requests, quotes and states of the cluster that were not let through, by tenant and the quota that was used up.",
    ROUTER,
    (TENANT, QUOTA),
)
QUOTAS_ALONE = Metric(
    "slos.quota.alone",
    Kind.GAUGE,
    "{router}",
    "1 while this router keeps quotas from its share of them, because Redis is down or slow; else 0.",
    ROUTER,
)
REQUESTS_QUEUED = Metric(
    "slos.requests.queued",
    Kind.GAUGE,
    "{request}",
    "Admitted requests that wait in the router for capacity on a worker.",
    ROUTER,
)
REQUESTS_HELD = Metric(
    "slos.requests.held",
    Kind.GAUGE,
    "{request}",
    "Requests without a verdict yet, because capacity for them is expected in time.",
    ROUTER,
)
REQUESTS_RUNNING = Metric("slos.requests.running", Kind.GAUGE, "{request}", "Requests on a worker.", ROUTER)
REQUESTS_RESTARTED = Metric(
    "slos.requests.restarted",
    Kind.COUNTER,
    "{restart}",
    "Restarts of requests, because a worker was lost or failed on them.",
    ROUTER,
)
PROMISES_GUARANTEED = Metric(
    "slos.promises.guaranteed",
    Kind.COUNTER,
    "{request}",
    "Requests whose contract was guaranteed.",
    ROUTER,
    (PROFILE, TENANT),
)
PROMISES_KEPT = Metric(
    "slos.promises.kept",
    Kind.COUNTER,
    "{request}",
    "Guarantees kept to the end of the request.",
    ROUTER,
    (PROFILE, TENANT),
)
PROMISES_MISSED = Metric(
    "slos.promises.missed",
    Kind.COUNTER,
    "{request}",
    "Guarantees missed, by the phase to which the miss is attributed: `docs/reference/telemetry.md` says how. "
    "A failed request counts in its last phase.",
    ROUTER,
    (PROFILE, TENANT, PHASE),
)
BEST_EFFORT = Metric(
    "slos.best_effort", Kind.COUNTER, "{request}", "Requests admitted without a guarantee.", ROUTER, (PROFILE, TENANT)
)
PHASE_TIME = Metric(
    "slos.phase.time",
    Kind.COUNTER,
    "s",
    "Time that ended requests spent in each phase. Divided by `slos.requests.ended` it is the mean breakdown.",
    ROUTER,
    (PHASE, PROFILE),
)
TOKENS = Metric(
    "slos.tokens",
    Kind.COUNTER,
    "{token}",
    "Tokens of ended requests: input, input found in a prefix cache (cached), output.",
    ROUTER,
    (TOKENS_OF,),
)
FORECASTS = Metric(
    "slos.forecasts",
    Kind.COUNTER,
    "{request}",
    "Guaranteed requests that ran to their end, by whether TTFT and TPOT stayed within the bounds predicted at"
    " admission.",
    ROUTER,
    (FIGURE, WITHIN),
)
PLANNER_ROUND_DURATION = Metric(
    "slos.planner.round.duration",
    Kind.HISTOGRAM,
    "s",
    "Time that the planner takes for one round.",
    ROUTER,
    (),
    ROUND_BUCKETS,
)
LOOP_DELAY = Metric(
    "slos.router.loop.delay",
    Kind.HISTOGRAM,
    "s",
    "How much later than asked the event loop came back: for so long no stream of this router went on.",
    ROUTER,
    (),
    LOOP_BUCKETS,
)
DISBELIEVED_REPORTS = Metric(
    "slos.worker.reports.disbelieved",
    Kind.COUNTER,
    "{report}",
    "Reports of a worker whose figures made no sense and were not used.",
    ROUTER,
    (WORKER, ROLE),
)
WORKERS = Metric(
    "slos.workers", Kind.GAUGE, "{worker}", "Workers that this router is connected to.", ROUTER, (ROLE, HEALTH)
)
WORKERS_LOST = Metric(
    "slos.workers.lost", Kind.COUNTER, "{worker}", "Sessions with a worker that broke without a drain.", ROUTER
)
WORKER_STEPS = Metric(
    "slos.worker.steps", Kind.COUNTER, "{step}", "Engine steps reported to this router.", ROUTER, (WORKER, ROLE)
)
WORKER_STEPS_WITHIN_BOUND = Metric(
    "slos.worker.steps.within_bound",
    Kind.COUNTER,
    "{step}",
    "Engine steps that took no longer than the planner's bound for 99 % of steps, before it had seen them.",
    ROUTER,
    (WORKER, ROLE),
)
WORKER_STEP_ERROR = Metric(
    "slos.worker.step_time.error",
    Kind.GAUGE,
    "1",
    "Mean absolute error of the planner's prediction of recent steps, relative to what they took.",
    ROUTER,
    (WORKER, ROLE),
)
LEASED_BLOCKS_IN_USE = Metric(
    "slos.kv.leased_blocks.in_use",
    Kind.GAUGE,
    "{block}",
    "KV blocks that a prefill worker holds under lease for running requests of this router. The worker's "
    "leased `slos.kv.blocks` beyond the sum over all routers are stranded.",
    ROUTER,
    (WORKER,),
)
KV_RECOMPUTES = Metric(
    "slos.kv.recomputes",
    Kind.COUNTER,
    "{request}",
    "KV caches that could not be pulled and were computed again on the decode worker.",
    (Process.ROUTER, Process.DECODE),
)

CREDENTIALS_REFUSED = Metric(
    "slos.credentials.refused",
    Kind.COUNTER,
    "{call}",
    "Calls, of a gateway requests, whose credential was missing or not valid, by cause.",
    (Process.ROUTER, Process.GATEWAY),
    (REASON,),
)
CREDENTIAL_FAULTS = Metric(
    "slos.credentials.faults",
    Kind.COUNTER,
    "{read}",
    "Failed attempts to read API keys or the keys of the issuer of tokens again: what was read before is still used.",
    (Process.ROUTER, Process.GATEWAY),
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
