"""The extension of vLLM's workers where speculation is on.

All sampling options work for requests that draft nothing, and a step in which nobody drafts costs what it costs without
speculation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.engine.vllm.shared.support import require_attributes

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.v1.outputs import SamplerOutput
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


class DraftWorker:
    """The extension of vLLM's worker class, which is given to vLLM by name.

    With speculation vLLM builds no logits processor but the one for the least number of tokens, since it does not apply
    them to draft tokens. It does apply whatever is there to a request's next token, which is all there is of a request
    without drafts; see `may_draft`.
    """

    model_runner: Any

    def prepare_for_drafts(self) -> None:
        """Extend this worker; to be called on every worker before the first request."""
        self._complete_logits_processors()
        self._sample_plainly_without_drafts()
        self._propose_nothing_unasked()

    def _sample_plainly_without_drafts(self) -> None:
        """Have steps without drafts sampled without the rejection sampler.

        It draws a number for each token of the vocabulary and each request of sampled text, in every step.
        """
        runner = self.model_runner
        require_attributes(runner, "_sample", "speculative_config", "drafter")
        sample = runner._sample

        def sampled(logits: torch.Tensor | None, metadata: SpecDecodeMetadata | None) -> SamplerOutput:
            undrafted = metadata is not None and not any(metadata.num_draft_tokens)
            return sample(logits, None if undrafted else metadata)

        runner._sample = sampled

    def _propose_nothing_unasked(self) -> None:
        """Have nothing proposed where nothing is asked for: vLLM's proposer would look for n-grams all the same."""
        if self.model_runner.speculative_config.method != "ngram":
            return
        drafter = self.model_runner.drafter
        require_attributes(drafter, "propose")
        propose = drafter.propose

        def proposed(most: int, sampled_token_ids: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
            if most == 0:
                return [[] for _ in sampled_token_ids]
            drafts: list[list[int]] = propose(most, sampled_token_ids, *args, **kwargs)
            return drafts

        drafter.propose = proposed

    def _complete_logits_processors(self) -> None:
        from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors

        from services.engine.vllm.core.penalties import CarriedPenalties

        runner = self.model_runner
        require_attributes(runner, "input_batch", "vllm_config", "device")
        batch = runner.input_batch
        require_attributes(batch, "logitsprocs", "logitsprocs_need_output_token_ids")
        batch.logitsprocs = LogitsProcessors(
            make(runner.vllm_config, runner.device, False) for make in (*BUILTIN_LOGITS_PROCESSORS, CarriedPenalties)
        )
        batch.logitsprocs_need_output_token_ids = True


def may_draft(params: SamplingParams | None, carried_tokens: int) -> bool:
    """Return whether drafts leave a request's text as it would be without them.

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
