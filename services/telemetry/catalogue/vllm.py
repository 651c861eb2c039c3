"""Metrics of a worker under vLLM's names, so that dashboards and routers made for vLLM find them.

Names, labels and buckets are those of vLLM 0.32. The values are those of the worker's engine, emulated or not.
"""

from __future__ import annotations

from services.telemetry.catalogue.metric import WORKERS, Kind, Metric

LABELS = ("model_name", "engine")
FINISHED_REASON = "finished_reason"
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
STEP_TOKEN_BUCKETS = tuple(float(2**power) for power in (0, *range(3, 15)))


def _gauge(name: str, meaning: str, unit: str = "{request}") -> Metric:
    return Metric(f"vllm:{name}", Kind.GAUGE, unit, meaning, WORKERS, LABELS)


def _counter(name: str, unit: str, meaning: str, *more: str) -> Metric:
    return Metric(f"vllm:{name}", Kind.COUNTER, unit, meaning, WORKERS, (*LABELS, *more))


def _histogram(name: str, buckets: tuple[float, ...], meaning: str, unit: str = "s") -> Metric:
    return Metric(f"vllm:{name}", Kind.HISTOGRAM, unit, meaning, WORKERS, LABELS, buckets)


RUNNING = _gauge("num_requests_running", "Requests that the engine computes.")
WAITING = _gauge("num_requests_waiting", "Requests that wait in the engine.")
KV_USAGE = _gauge("kv_cache_usage_perc", "Share of the KV blocks in use, from 0 to 1.", "1")
CACHE_CONFIG = Metric(
    "vllm:cache_config_info",
    Kind.GAUGE,
    "1",
    "Always 1; the labels describe the KV cache.",
    WORKERS,
    ("engine", "block_size", "num_gpu_blocks", "cache_dtype"),
)
PROMPT_TOKENS = _counter(
    "prompt_tokens", "{token}", "Prompt tokens of requests whose prompt was computed on this worker."
)
GENERATION_TOKENS = _counter("generation_tokens", "{token}", "Tokens generated on this worker.")
PREEMPTIONS = _counter("num_preemptions", "{request}", "Times that a request gave up its KV cache for another.")
PREFIX_QUERIES = _counter("prefix_cache_queries", "{token}", "Prompt tokens looked up in the prefix cache.")
PREFIX_HITS = _counter("prefix_cache_hits", "{token}", "Prompt tokens found in the prefix cache.")
REQUEST_SUCCESS = _counter(
    "request_success", "{request}", "Requests that ended on this worker, by vLLM's finish reason.", FINISHED_REASON
)
DRAFT_TOKENS = _counter("spec_decode_num_draft_tokens", "{token}", "Draft tokens verified.")
ACCEPTED_TOKENS = _counter("spec_decode_num_accepted_tokens", "{token}", "Draft tokens accepted.")
TTFT = _histogram(
    "time_to_first_token_seconds",
    TTFT_BUCKETS,
    "Time from a prompt's arrival at this worker to its first token. The client's TTFT is the router's "
    "`gen_ai.server.time_to_first_token`.",
)
ITL = _histogram("inter_token_latency_seconds", ITL_BUCKETS, "Time between two outputs of a request on this worker.")
TPOT = _histogram(
    "request_time_per_output_token_seconds",
    ITL_BUCKETS,
    "Mean time between tokens, per request that ended on this worker.",
)
E2E = _histogram(
    "e2e_request_latency_seconds", LATENCY_BUCKETS, "Time from a request's arrival at this worker to its end on it."
)
QUEUE = _histogram(
    "request_queue_time_seconds",
    LATENCY_BUCKETS,
    "Time until the engine first worked on a request, pulling its KV cache included.",
)
PREFILL = _histogram(
    "request_prefill_time_seconds",
    LATENCY_BUCKETS,
    "Time from then to the first token, of prompts computed on this worker.",
)
DECODE = _histogram(
    "request_decode_time_seconds", LATENCY_BUCKETS, "Time from a request's first output on this worker to its last."
)
STEP_TOKENS = _histogram("iteration_tokens_total", STEP_TOKEN_BUCKETS, "Tokens per engine step.", "{token}")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
