"""From vLLM's output of one step to ours."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.engine.kv.handle import KvHandle, KvPull
from services.engine.protocol import EngineRequest, FinishReason, RequestOutput, RequestTimings, TokenLogprob

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.outputs import LogprobsLists

    from services.engine.kv.claims import Claim
    from services.engine.vllm.shared.nixl_terms import NixlTerms

_SCHEDULED = 2
"""`EngineCoreEventType.SCHEDULED`."""


@dataclass(slots=True)
class LiveRequest:
    """A request between `submit` and its last output."""

    request: EngineRequest
    core_id: str
    submitted_at_s: float
    scheduled_at_s: float | None = None
    claim: Claim[NixlTerms] | None = None
    pull: KvPull | None = None
    recompute_reason: str = ""
    aborted: bool = False
    in_core: bool = False
    answered: bool = False

    def recompute(self, reason: str) -> None:
        """The KV cache is computed here; its producer need not hold it any longer."""
        self.recompute_reason = reason
        self.end_claim()

    def end_claim(self) -> None:
        """The KV cache is, from now on, not read by this request."""
        if self.claim is None:
            return
        if self.pull is not None:
            self.claim.confirm()
        else:
            self.claim.give_back()
        self.claim = None


def translate(live: LiveRequest, output: EngineCoreOutput, step_at_s: float, kv: KvHandle | None) -> RequestOutput:
    """One request's output; its first output carries the timings. Times are on this host's monotonic clock."""
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


def aborted(live: LiveRequest) -> RequestOutput:
    """The last output of a request that never reached EngineCore."""
    waited_s = time.monotonic() - live.submitted_at_s
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
    """Per token the chosen one first, then the likeliest in order."""
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
