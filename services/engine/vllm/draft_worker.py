"""Sampling options that vLLM refuses beside speculation, made to work for requests that draft nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.engine.vllm.support import require_attributes

if TYPE_CHECKING:
    from vllm import SamplingParams

COMPLETE = "complete_logits_processors"
"""To be called on every worker before the first request."""


class DraftWorker:
    """Extension of vLLM's worker class, given to vLLM by name.

    With speculation vLLM builds no logits processor but the one for the least number of tokens, since it does not apply
    them to draft tokens. It does apply whatever is there to a request's next token, which is all there is of a request
    without drafts; see `may_draft`.
    """

    model_runner: Any

    def complete_logits_processors(self) -> None:
        from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors

        from services.engine.vllm.penalties import CarriedPenalties

        runner = self.model_runner
        require_attributes(runner, "input_batch", "vllm_config", "device")
        batch = runner.input_batch
        require_attributes(batch, "logitsprocs", "logitsprocs_need_output_token_ids")
        batch.logitsprocs = LogitsProcessors(
            make(runner.vllm_config, runner.device, False) for make in (*BUILTIN_LOGITS_PROCESSORS, CarriedPenalties)
        )
        batch.logitsprocs_need_output_token_ids = True


def may_draft(params: SamplingParams | None, carried_tokens: int) -> bool:
    """Whether drafts leave a request's text as it would be without them.

    Not with options that are not applied to drafts, nor with a seed: how many random numbers are drawn depends on how
    many drafts there are.
    """
    if params is None:
        return False
    penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
    return not (
        params.min_p > 0
        or params.logit_bias
        or (penalised and carried_tokens)
        or (params.seed is not None and params.temperature > 0)
    )
