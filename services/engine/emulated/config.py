"""The options of the emulated engine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from services.slo.step_coverage import STEP_COVERAGE


class EmulatedEngineConfig(BaseModel):
    """The options of an engine that takes the performance model's time and makes its tokens up."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    overhead_s: NonNegativeFloat = 0.008
    """Time of an engine step besides its tokens. Seconds."""
    per_token_s: NonNegativeFloat = 55e-6
    """Time per token scheduled in a step. Seconds."""
    per_context_token_s: NonNegativeFloat = 0.09e-6
    """Time per token of context that a decode attends to. Seconds."""
    per_attention_pair_s: NonNegativeFloat = 0.0
    """Time per pair of prompt token and context token in a prefill chunk. Seconds."""
    step_time_noise: float = Field(default=0.05, ge=0, lt=1)
    """Standard deviation of a step's time, relative to the model's."""
    announced_error: PositiveFloat = 1.0
    """Multiple of its true step times that the engine announces before it runs."""
    time_scale: PositiveFloat = 1.0
    """Multiple of the time that steps and transfers take: 0.1 runs ten times as fast as the engine it stands for.
    Leases last as long as they say."""
    policy: Literal["slo", "stock"] = "slo"
    """Way in which steps are composed: from the promises that the engine holds, or as a vLLM does that knows none."""
    step_cap_s: PositiveFloat | None = None
    """Seconds that no step is composed to exceed, even without a promise that bounds it. Unset: the tightest TPOT
    lately promised."""
    bound_coverage: float = Field(default=STEP_COVERAGE, gt=0, lt=1)
    """Share of the steps that keep the duration for which they were composed, as far as that can be learnt."""
    reserve_s: NonNegativeFloat = 0.005
    """Seconds before a token is due at which its step ends, for its way to the router."""
    first_guess: PositiveFloat = 1.5
    """Multiple of the true step times with which the engine begins; it learns better from the steps that it takes."""
    record_steps_in: Path | None = None
    """Directory in which each engine writes down its steps, as `<worker>.jsonl`, for `services.engine.step_recording`.
    Steps of the policy `stock` are not written."""
    block_tokens: PositiveInt = 16
    """Tokens in a KV block."""
    kv_blocks: PositiveInt = 8192
    """KV blocks of the engine."""
    kv_bytes_per_token: PositiveInt = 57_344
    """Bytes of KV cache per token."""
    max_step_tokens: PositiveInt = 2048
    """Largest number of tokens in a step; a longer prompt is computed in chunks."""
    max_running_requests: PositiveInt = 256
    """Largest number of requests worked on at once; the rest wait."""
    max_context_tokens: PositiveInt = 32_768
    """Largest number of tokens of a request, prompt and output together."""
    vocabulary_size: PositiveInt = 49_152
    """Number of tokens, and bound of their ids. Equal on all workers, like the other three options of made-up
    tokens."""
    eos_token_id: NonNegativeInt = 2
    """The end-of-sequence token."""
    special_tokens: NonNegativeInt = 17
    """Number of ids, from 0 on, that are never made up, the end-of-sequence token apart."""
    mean_output_tokens: PositiveInt = 256
    """Number of tokens after which an output ends by itself on average."""
    link_latency_s: NonNegativeFloat = 0.010
    """Time to start a KV transfer. Seconds."""
    link_bytes_per_s: PositiveFloat = 10e9
    """Bandwidth of a KV transfer."""
    kv_lease_s: PositiveFloat = 30.0
    """Seconds that a finished prefill's KV cache is held for its decode worker."""
    lease_margin_s: NonNegativeFloat = 1.0
    """Seconds that a pull must end before its lease does; else the KV cache is computed again."""
    kv_host: str = ""
    """Address on which the KV cache is offered to other engines. Empty: as `engine.vllm.side_channel_host`,
    and what holds for that without `[tls]` holds here."""
    seed: int = 0
    """Seed of the noise of step times."""

    @model_validator(mode="after")
    def _vocabulary_has_room(self) -> Self:
        if self.eos_token_id >= self.vocabulary_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.vocabulary_size}")
        if self.vocabulary_size - self.special_tokens < 2:
            raise ValueError(f"{self.special_tokens} special tokens leave nothing of {self.vocabulary_size} to make up")
        return self
