"""The outputs of one step, made from vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.engine.kv.handle import KvHandle
from services.engine.protocol import FinishReason, RequestOutput, RequestTimings, TokenLogprob

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.outputs import LogprobsLists

    from services.engine.vllm.frontend.live_requests import LiveRequest

_SCHEDULED = 2
"""Value of `EngineCoreEventType.SCHEDULED`; this module is loaded without vLLM."""


def translate(live: LiveRequest, output: EngineCoreOutput, step_at_s: float, kv: KvHandle | None) -> RequestOutput:
    """Return one request's output; its first output carries the timings. `step_at_s` is on the monotonic clock."""
    for event in output.events or ():
        if event.type == _SCHEDULED and live.scheduled_at_s is None:
            live.scheduled_at_s = event.timestamp
    timings = None
    if not live.answered:
        live.answered = True
        timings = _timings(live, output, step_at_s)
    return RequestOutput(
        request_id=live.request.request_id,
        token_ids=tuple(output.new_token_ids),
        logprobs=() if output.new_logprobs is None else logprobs(output.new_logprobs),
        finish_reason=_finish_reason(output),
        stop_token_id=output.stop_reason if isinstance(output.stop_reason, int) else None,
        kv=kv,
        timings=timings,
    )


def aborted(live: LiveRequest, now_s: float) -> RequestOutput:
    """Return the last output of a request that was aborted before it reached EngineCore."""
    waited_s = now_s - live.submitted_at_s
    return RequestOutput(
        live.request.request_id, (), finish_reason=FinishReason.ABORT, timings=RequestTimings(waited_s, 0.0)
    )


def _timings(live: LiveRequest, output: EngineCoreOutput, step_at_s: float) -> RequestTimings:
    scheduled_at_s = step_at_s if live.scheduled_at_s is None else live.scheduled_at_s
    return RequestTimings(
        wait_s=max(0.0, scheduled_at_s - live.submitted_at_s),
        run_s=max(0.0, step_at_s - scheduled_at_s),
        cached_tokens=0 if output.prefill_stats is None else output.prefill_stats.num_local_cached_tokens,
        kv_pull=live.pull,
        kv_recompute_reason=live.recompute_reason,
    )


def _finish_reason(output: EngineCoreOutput) -> FinishReason | None:
    if output.finish_reason is None:
        return None
    try:
        return FinishReason(str(output.finish_reason))
    except ValueError:
        # vLLM's reasons for ends that nobody here asked for.
        return FinishReason.ERROR


def logprobs(found: LogprobsLists) -> tuple[tuple[TokenLogprob, ...], ...]:
    """Return for each token the log probability of the chosen one, then those of the likeliest in order."""
    tokens = []
    for ids, values, chosen_rank in zip(
        found.logprob_token_ids, found.logprobs, found.sampled_token_ranks, strict=True
    ):
        ranks = [int(chosen_rank), *range(1, len(ids))]
        tokens.append(
            tuple(
                TokenLogprob(int(token_id), float(value), rank)
                for token_id, value, rank in zip(ids, values, ranks, strict=True)
            )
        )
    return tuple(tokens)
