"""The request that a client sends: its prompt, how tokens are drawn, and the options of the call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypedDict, Unpack

from slos_serve.contract import Contract, contract_to_wire
from slos_serve.v1 import inference_pb2, sampling_pb2

_METADATA_NAME = re.compile(r"[a-z0-9_.-]+")
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; the role is system, user, assistant or tool."""

    role: str
    """Who speaks."""
    content: str
    """What is said."""


Prompt = str | Sequence[Message] | Sequence[int]
"""A prompt is a text that is used as it is, a conversation for the model's chat template, or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The parameters by which tokens are drawn. None stands for the cluster's default."""

    max_tokens: int | None = None
    """Tokens to generate at most."""
    min_tokens: int | None = None
    """No stop condition applies before this many tokens."""
    temperature: float | None = None
    """Temperature of sampling; 0 takes the likeliest token."""
    top_p: float | None = None
    top_k: int | None = None
    """Number of likeliest tokens to draw from; 0 keeps all."""
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    """With a seed the same request draws the same tokens again."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """Log probabilities of the chosen token and of this many likeliest ones, per token."""


class RequestOptions(TypedDict, total=False):
    """The options of a request besides its prompt."""

    contract: Contract | None
    """Contract of the request. None: best effort."""
    sampling: Sampling | None
    """How tokens are drawn. None: the cluster's defaults."""
    request_id: str
    """Unique id, of at most 128 printable characters. Empty: the router makes one."""
    model: str
    """Name of the model, which must be the one served. Empty: whatever is served."""
    application: str
    """Name of the application that asks; output lengths are learned per application and tenant."""
    tenant: str
    """Tenant who asks; it labels metrics, and protects nothing."""
    expected_output_tokens: int | None
    """Number of output tokens that are expected at most; a hint, never a limit."""


class CallOptions(RequestOptions, total=False):
    """The options of a request and of the call that carries it."""

    timeout_s: float | None
    """Seconds until the deadline of the whole call, retries included; the router knows it too. None: no deadline."""
    traceparent: str
    """W3C trace context of the caller."""
    tracestate: str
    """W3C trace state that goes with it."""
    metadata: Mapping[str, str]
    """Further gRPC metadata of the call."""


def request_options(options: CallOptions, application: str, tenant: str) -> CallOptions:
    """Return the options, with a client's own application and tenant where they name none."""
    return {
        **options,
        "application": options.get("application") or application,
        "tenant": options.get("tenant") or tenant,
    }


def build_request(prompt: Prompt, **options: Unpack[CallOptions]) -> inference_pb2.GenerateRequest:
    """Return the message that asks for text.

    Raises:
        TypeError: the prompt mixes messages with something else.
    """
    message = inference_pb2.GenerateRequest(
        request_id=options.get("request_id", ""),
        model=options.get("model", ""),
        application=options.get("application", ""),
        tenant=options.get("tenant", ""),
        expected_output_tokens=options.get("expected_output_tokens"),
    )
    if (sampling := options.get("sampling")) is not None:
        message.sampling.CopyFrom(_sampling_to_wire(sampling))
    if (contract := options.get("contract")) is not None:
        message.contract.CopyFrom(contract_to_wire(contract))
    _set_prompt(message, prompt)
    return message


def _set_prompt(message: inference_pb2.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        message.text = prompt
        return
    turns = [turn for turn in prompt if isinstance(turn, Message)]
    if turns and len(turns) == len(prompt):
        message.chat.messages.extend(inference_pb2.ChatMessage(role=turn.role, content=turn.content) for turn in turns)
        return
    if turns:
        raise TypeError("a prompt is a text, messages or token ids; this one mixes messages with something else")
    message.token_ids.SetInParent()
    message.token_ids.ids.extend(item for item in prompt if not isinstance(item, Message))


def _sampling_to_wire(sampling: Sampling) -> sampling_pb2.SamplingParams:
    values = {option.name: getattr(sampling, option.name) for option in fields(sampling)}
    return sampling_pb2.SamplingParams(**{name: value for name, value in values.items() if value is not None})


def call_metadata(options: CallOptions) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call: its trace context, the request's id for logs, and what the caller adds.

    Raises:
        ValueError: an entry that the caller adds cannot be metadata. The message leaves its value out, which may be a
            credential; gRPC's own would show all entries.
    """
    named = {
        "traceparent": options.get("traceparent", ""),
        "tracestate": options.get("tracestate", ""),
        "x-request-id": options.get("request_id", ""),
    }
    given = {name.lower(): value for name, value in options.get("metadata", {}).items()}
    for name, value in given.items():
        if not _METADATA_NAME.fullmatch(name) or not _METADATA_VALUE.fullmatch(value):
            raise ValueError(f"metadata {name!r}: names are of a-z, 0-9, '_', '-' and '.', values are printable ASCII")
    # The message says the request's id as well, and a router refuses one that metadata cannot carry.
    sendable = {name: value for name, value in named.items() if value and _METADATA_VALUE.fullmatch(value)}
    return tuple({**sendable, **given}.items())
