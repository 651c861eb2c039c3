"""The sampling options of vLLM, made from those of the port, for requests that may continue an output."""

from __future__ import annotations

import math
from typing import Any

from services.engine.protocol import EngineRequest, SamplingOptions
from services.engine.vllm.shared.carried_output import CARRIED_KEY
from services.model.misfit import misfit

_MASK_64 = 2**64 - 1
_MAX_SEED = 2**63 - 1


class UnservableRequestError(ValueError):
    """The request itself is at fault, and no engine would take it."""


def derived_seed(seed: int | None, generated_tokens: int) -> int | None:
    """Return the seed of a continuation; the start of an output keeps its own.

    vLLM starts its random numbers anew with each request, so that the seed itself would draw the numbers of the first
    tokens again.
    """
    if seed is None:
        return None
    if generated_tokens == 0:
        return seed if seed >= 0 else seed & _MAX_SEED
    return _splitmix64((seed & _MASK_64) ^ _splitmix64(generated_tokens)) & _MAX_SEED


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def remaining_tokens(request: EngineRequest) -> int:
    """Return how many tokens a request may still generate."""
    return request.sampling.max_tokens - request.generated_tokens


def check_request(request: EngineRequest, vocabulary_size: int, max_context_tokens: int) -> None:
    """Refuse a request on which vLLM would crash or that it would answer wrongly.

    Raises:
        UnservableRequestError: naming the field.
    """
    token_ids = request.token_ids
    unfit = misfit(token_ids, vocabulary_size, max_context_tokens)
    if unfit is not None:
        raise UnservableRequestError(f"token_ids: {unfit.detail}")
    if not 0 <= request.generated_tokens <= len(token_ids):
        raise UnservableRequestError(
            f"generated_tokens is {request.generated_tokens} of {len(token_ids)} tokens in token_ids"
        )
    if remaining_tokens(request) <= 0:
        raise UnservableRequestError(
            f"max_tokens is {request.sampling.max_tokens} with {request.generated_tokens} tokens generated already"
        )
    _check_sampling(request.sampling)


def _check_sampling(sampling: SamplingOptions) -> None:
    numbers = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        **{f"logit_bias[{token_id}]": bias for token_id, bias in sampling.logit_bias.items()},
    }
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise UnservableRequestError(f"{name} is {value}")
    if sampling.seed is not None and not -(2**63) <= sampling.seed <= _MAX_SEED:
        raise UnservableRequestError(f"seed is {sampling.seed}, not a 64-bit number")


def vllm_arguments(
    request: EngineRequest, eos_token_ids: tuple[int, ...], kv_transfer_params: dict[str, Any] | None, export_kv: bool
) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's `SamplingParams`.

    Args:
        eos_token_ids: end the output unless the request ignores them; vLLM has no tokenizer to learn them from.
        export_kv: the request ends after one token, whatever its own limit.
    """
    sampling = request.sampling
    max_tokens = 1 if export_kv else remaining_tokens(request)
    min_tokens = min(max(0, sampling.min_tokens - request.generated_tokens), max_tokens)
    eos = () if sampling.ignore_eos else eos_token_ids
    extra: dict[str, Any] = {CARRIED_KEY: request.generated_tokens}
    if kv_transfer_params is not None:
        extra["kv_transfer_params"] = kv_transfer_params
    return {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": derived_seed(sampling.seed, request.generated_tokens),
        "stop_token_ids": [*dict.fromkeys((*sampling.stop_token_ids, *eos))],
        "ignore_eos": sampling.ignore_eos,
        "logprobs": sampling.logprobs,
        "logit_bias": dict(sampling.logit_bias) or None,
        "detokenize": False,
        "extra_args": extra,
    }
