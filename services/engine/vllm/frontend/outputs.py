"""The outputs of one step, made from vLLM's."""

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
"""Value of `EngineCoreEventType.SCHEDULED`; this module is loaded without vLLM."""


@dataclass(slots=True)
class LiveRequest:
    """A request between `submit` and its last output."""

    request: EngineRequest
    core_id: str
    """Name of the request inside EngineCore."""
    submitted_at_s: float
    """Time of `submit`, on this host's monotonic clock, as all times here."""
    scheduled_at_s: float | None = None
    """Time at which EngineCore first scheduled it; None before."""
    claim: Claim[NixlTerms] | None = None
    """Claim of the KV cache that it pulls, until that is no longer read."""
    pull: KvPull | None = None
    """Transfer that brought its KV cache; None before, or if none did."""
    recompute_reason: str = ""
    """Reason why its KV cache is computed here although one was to be pulled."""
    aborted: bool = False
    """Whether nobody wants its tokens any more."""
    in_core: bool = False
    """Whether EngineCore has it; it has not while its KV cache is being claimed."""
    answered: bool = False
    """Whether its first output has gone out, which carries the timings."""

    def recompute(self, reason: str) -> None:
        """Note that the KV cache is computed here, so that its exporter need not hold it any longer."""
        self.recompute_reason = reason
        self.end_claim()

    def end_claim(self) -> None:
        """End the claim: from now on this request does not read the KV cache of another engine."""
        if self.claim is None:
            return
        if self.pull is not None:
            self.claim.confirm()
        else:
            self.claim.give_back()
        self.claim = None


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


def aborted(live: LiveRequest) -> RequestOutput:
    """Return the last output of a request that was aborted before it reached EngineCore."""
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
