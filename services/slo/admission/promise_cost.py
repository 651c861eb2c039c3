"""What a promise costs: seconds of the whole cluster's most taken resource, which fair shares are counted in."""

from __future__ import annotations

from services.slo.admission.workers import Cluster
from services.slo.latency_forecast import Placement
from services.slo.performance import PerformanceModel
from services.slo.planner import StepBound

BATCH = 32
"""Streams of a step in which a further one is counted. Chosen: alone a stream would pay for reading all weights."""


def promise_cost_s(
    cluster: Cluster, placement: Placement, new_tokens: int, prompt_tokens: int, output_tokens: float, kv_tokens: int
) -> float:
    """Return the time for which a request would take all of the cluster's resource that it takes most of, in seconds.

    The resources are the time of workers that compute prompts, the time of workers that decode (the same time where a
    request stays), and KV memory.

    Args:
        new_tokens: tokens of the prompt that no worker has in its cache.
        output_tokens: tokens of output that are expected.
        kv_tokens: context tokens that it is promised memory for.
    """
    prefiller = cluster.workers[placement.prefill_worker_id]
    decoder = cluster.workers[placement.decode_worker_id]
    pool = [worker for worker in cluster.workers.values() if worker.facts.group == decoder.facts.group]
    decoders = sum(worker.decodes for worker in pool)
    prefill_s = prompt_work_s(prefiller.model, max(1, new_tokens), prompt_tokens)
    decode_s = output_tokens * stream_token_s(decoder.model, prompt_tokens + round(output_tokens / 2))
    if placement.local:
        time_s = (prefill_s + decode_s) / len(pool)
    else:
        time_s = max(prefill_s / max(1, len(pool) - decoders), decode_s / max(1, decoders))
    held_s = prefill_s + output_tokens * placement.tpot.expected_s
    memory_s = held_s * kv_tokens / (decoder.facts.kv_tokens * max(1, decoders))
    return max(time_s, memory_s)


def prompt_work_s(model: PerformanceModel, new_tokens: int, prompt_tokens: int) -> float:
    """Return the time that a prompt takes of a worker whose steps serve others as well, in seconds.

    Args:
        new_tokens: tokens of the prompt that have to be computed.
    """
    step = StepBound.of(model)
    pairs = new_tokens * (prompt_tokens - new_tokens / 2)
    return new_tokens * step.per_token_s + step.per_request_s + pairs * step.per_attention_pair_s


def stream_token_s(model: PerformanceModel, context_tokens: int) -> float:
    """Return the time that a token of one stream takes of a worker which decodes many, in seconds."""
    with_more = model.decode_step_s(2 * BATCH, 2 * BATCH * context_tokens)
    return (with_more - model.decode_step_s(BATCH, BATCH * context_tokens)) / BATCH
