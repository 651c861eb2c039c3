"""Conversion of sampling parameters and log probabilities. Stop strings stay in the router and reach no engine."""

from __future__ import annotations

from collections.abc import Iterable

from services.engine.protocol import SamplingOptions, TokenLogprob
from services.wire.error import WireError, finite
from slos_serve.v1 import sampling_pb2

_DEFAULTS = SamplingOptions(max_tokens=1)


def sampling_to_wire(options: SamplingOptions) -> sampling_pb2.SamplingParams:
    return sampling_pb2.SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        min_tokens=options.min_tokens,
        seed=options.seed,
        stop_token_ids=options.stop_token_ids,
        ignore_eos=options.ignore_eos,
        logprobs=options.logprobs,
        logit_bias=options.logit_bias,
    )


def sampling_from_wire(message: sampling_pb2.SamplingParams) -> SamplingOptions:
    """Read sampling parameters, with defaults for fields that are not set.

    Raises:
        WireError: `max_tokens` is missing, or a number is NaN or infinite.
    """
    if message.max_tokens <= 0:
        raise WireError("sampling.max_tokens", f"must be positive; got {message.max_tokens}")
    unset = _DEFAULTS
    options = SamplingOptions(
        max_tokens=message.max_tokens,
        temperature=message.temperature if message.HasField("temperature") else unset.temperature,
        top_p=message.top_p if message.HasField("top_p") else unset.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty
        if message.HasField("repetition_penalty")
        else unset.repetition_penalty,
        min_tokens=message.min_tokens,
        seed=message.seed if message.HasField("seed") else None,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        logit_bias=dict(message.logit_bias),
    )
    finite("sampling.temperature", options.temperature)
    finite("sampling.top_p", options.top_p)
    finite("sampling.min_p", options.min_p)
    finite("sampling.presence_penalty", options.presence_penalty)
    finite("sampling.frequency_penalty", options.frequency_penalty)
    finite("sampling.repetition_penalty", options.repetition_penalty)
    for token, bias in options.logit_bias.items():
        finite(f"sampling.logit_bias[{token}]", bias)
    return options


def logprobs_to_wire(positions: Iterable[tuple[TokenLogprob, ...]]) -> list[sampling_pb2.TokenLogprobs]:
    return [
        sampling_pb2.TokenLogprobs(
            entries=[
                sampling_pb2.TokenLogprob(token_id=entry.token_id, logprob=entry.logprob, rank=entry.rank)
                for entry in position
            ]
        )
        for position in positions
    ]


def logprobs_from_wire(positions: Iterable[sampling_pb2.TokenLogprobs]) -> tuple[tuple[TokenLogprob, ...], ...]:
    return tuple(
        tuple(TokenLogprob(entry.token_id, entry.logprob, entry.rank) for entry in position.entries)
        for position in positions
    )
