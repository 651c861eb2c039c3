"""Parsing of requests: a message and its metadata become a request that makes sense, or an error names the field.

What a client sends is first checked in time that its size bounds (`check_call`); then its text is converted to token
ids, which may take long; then the request is complete (`complete`).
"""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from router.requests.parsed_request import ParsedRequest
from router.requests.scope import scope_of
from services.contract.headers import Caller, caller_of_headers, tenant_header
from services.contract.resolution import contract_of_call
from services.engine.protocol import SamplingOptions
from services.identity.cache_salts import CacheSalts
from services.identity.principal import ANYBODY, Principal
from services.model.misfit import misfit, too_long
from services.model.prompt_threads import MESSAGE_CHARACTERS
from services.model.request_limits import (
    MAX_BIAS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRING_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from services.model.tokenizer import ChatTemplateError, Tokenizer
from services.rpc.errors import REQUEST_ID, REQUEST_ID_METADATA, InvalidRequestError, UnknownModelError
from services.shown import clipped
from services.slo.contract import MAX_NAME_CHARACTERS, Contract, ContractError, ProfileBook
from slos_serve.v1 import inference_pb2, sampling_pb2

ROLES = frozenset({"system", "user", "assistant", "tool"})
"""Roles of the speakers of a conversation that chat templates know."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The model and the router's configuration set limits to every request."""

    model_name: str
    vocabulary_size: int
    max_context_tokens: int
    """Tokens of prompt and output together."""
    default_max_tokens: int
    """Output tokens of a request that names no limit, as far as the context has room for them."""
    max_prompt_characters: int
    """Characters of a text, or of all messages of a conversation, that can at most fit into the context."""


@dataclass(frozen=True, slots=True)
class CheckedCall:
    """A call makes sense as far as that can be said before its text is converted to token ids."""

    message: inference_pb2.GenerateRequest = dataclasses.field(repr=False)
    input_field: Literal["text", "chat", "token_ids"]
    input_characters: int
    """Characters of the text, or of all messages of the conversation with what rendering a message costs; 0 for token
    ids."""
    request_id: str
    """Id by which the whole cluster is to know the request."""
    contract: Contract
    application: str
    tenant: str
    scope: str = ""
    """Beginning of ids and names that are this tenant's own; empty where no credentials are checked."""

    def token_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Return the prompt.

        Raises:
            InvalidRequestError: the model's chat template refuses the conversation.
        """
        match self.input_field:
            case "text":
                return tokenizer.encode(self.message.text) if self.message.text else []
            case "chat":
                turns = [{"role": turn.role, "content": turn.content} for turn in self.message.chat.messages]
                try:
                    return tokenizer.encode_chat(turns) if turns else []
                except ChatTemplateError as error:
                    raise InvalidRequestError(str(error), field="chat") from error
            case "token_ids":
                return list(self.message.token_ids.ids)


def caller_of(metadata: Mapping[str, str]) -> Caller:
    """Return who asks, as far as the metadata of a call say it.

    Raises:
        InvalidRequestError: they make no sense.
    """
    try:
        return caller_of_headers(metadata)
    except ContractError as error:
        raise InvalidRequestError(error.detail, field=error.path) from error


def check_call(
    message: inference_pb2.GenerateRequest,
    metadata: Mapping[str, str],
    profiles: ProfileBook,
    limits: Limits,
    principal: Principal = ANYBODY,
) -> CheckedCall:
    """Check everything of a call that does not depend on the token ids of its prompt.

    Args:
        metadata: the metadata of the call, which supply the request id, the contract and the caller where the message
            leaves them out.
        principal: whoever calls. If that was checked, the tenant is the principal's.

    Raises:
        InvalidRequestError: a field holds what it must not.
        UnknownModelError: another model is asked for.
    """
    request_id = message.request_id or metadata.get(REQUEST_ID_METADATA) or f"req-{uuid.uuid4().hex}"
    if not REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError("must be 1 to 128 printable ASCII characters without blanks", field="request_id")
    if message.model and message.model != limits.model_name:
        raise UnknownModelError(
            f"{clipped(message.model)!r} is not served here; {limits.model_name!r} is", field="model"
        )
    if message.HasField("expected_output_tokens") and message.expected_output_tokens <= 0:
        raise InvalidRequestError("must be positive", field="expected_output_tokens")
    try:
        contract = contract_of_call(message.contract, metadata, profiles)
    except ContractError as error:
        raise InvalidRequestError(error.detail, field=error.path) from error
    caller = caller_of(metadata)
    application, tenant = message.application or caller.application, message.tenant or caller.tenant
    for field, name in (("application", message.application), ("tenant", message.tenant)):
        if len(name) > MAX_NAME_CHARACTERS:
            raise InvalidRequestError(f"at most {MAX_NAME_CHARACTERS} characters; got {len(name)}", field=field)
    if principal.checked:
        if tenant not in ("", principal.tenant):
            field = "tenant" if message.tenant else tenant_header(metadata)
            raise InvalidRequestError("the credential belongs to another tenant; leave this out", field=field)
        tenant = principal.tenant
    input_field, characters = _input(message, limits)
    _check_lists(message.sampling, limits)
    scope = scope_of(principal)
    scoped_id = f"{scope}{request_id}"
    return CheckedCall(message, input_field, characters, scoped_id, contract, application, tenant, scope)


def complete(call: CheckedCall, token_ids: Sequence[int], limits: Limits, salts: CacheSalts) -> ParsedRequest:
    """Return the request that a client sent.

    Args:
        token_ids: the prompt, as `CheckedCall.token_ids` returns it.
        salts: says with which salt the tenant's prompts are cached.

    Raises:
        InvalidRequestError: the model cannot continue the prompt, or a field of `sampling` holds what it must not.
    """
    message = call.message
    unfit = misfit(token_ids, limits.vocabulary_size, limits.max_context_tokens)
    if unfit is not None:
        # A text has no token ids that its client could look up.
        at = f".ids[{unfit.position}]" if unfit.position is not None and call.input_field == "token_ids" else ""
        raise InvalidRequestError(unfit.detail, field=f"{call.input_field}{at}")
    return ParsedRequest(
        request_id=call.request_id,
        prompt=tuple(token_ids),
        sampling=_sampling(message.sampling, limits, room=limits.max_context_tokens - len(token_ids)),
        stop=tuple(message.sampling.stop),
        include_stop=message.sampling.include_stop_str_in_output,
        skip_special_tokens=not message.sampling.HasField("skip_special_tokens")
        or message.sampling.skip_special_tokens,
        contract=call.contract,
        application=call.application,
        tenant=call.tenant,
        scope=call.scope,
        expected_output_tokens=(message.expected_output_tokens if message.HasField("expected_output_tokens") else None),
        cache_salt=salts.of(call.tenant),
        operation="chat" if call.input_field == "chat" else "text_completion",
    )


def check_lengths(*lists: tuple[str, int, int]) -> None:
    """Refuse lists that are too long, before anything walks through them.

    Args:
        lists: field, number of entries, and largest number of them.

    Raises:
        InvalidRequestError: a list has too many entries.
    """
    for field, count, most in lists:
        if count > most:
            raise InvalidRequestError(f"at most {most} entries; got {count}", field=field)


def _input(message: inference_pb2.GenerateRequest, limits: Limits) -> tuple[Literal["text", "chat", "token_ids"], int]:
    """Return the name of the input field that is set, and the number of its characters."""
    characters = 0
    match message.WhichOneof("input"):
        case "text":
            characters = len(message.text)
            _check_characters("text", characters, limits)
            return "text", characters
        case "chat":
            if len(message.chat.messages) > MAX_MESSAGES:
                raise InvalidRequestError(
                    f"at most {MAX_MESSAGES} messages; got {len(message.chat.messages)}", field="chat.messages"
                )
            for index, turn in enumerate(message.chat.messages):
                if turn.role not in ROLES:
                    raise InvalidRequestError(
                        f"unknown role {clipped(turn.role)!r}; known: {', '.join(sorted(ROLES))}",
                        field=f"chat.messages[{index}].role",
                    )
                characters += len(turn.content)
            _check_characters("chat", characters, limits)
            return "chat", characters + MESSAGE_CHARACTERS * len(message.chat.messages)
        case "token_ids":
            count = len(message.token_ids.ids)
            if count >= limits.max_context_tokens:
                raise InvalidRequestError(too_long(count, limits.max_context_tokens), field="token_ids")
            return "token_ids", 0
        case _:
            raise InvalidRequestError("one of text, chat and token_ids is needed", field="input")


def _check_characters(field: str, characters: int, limits: Limits) -> None:
    if characters > limits.max_prompt_characters:
        raise InvalidRequestError(
            f"{characters} characters; at most {limits.max_prompt_characters} can fit into "
            f"{limits.max_context_tokens} tokens",
            field=field,
        )


def _check_lists(message: sampling_pb2.SamplingParams, limits: Limits) -> None:
    """Check the lists of `sampling`, their lengths first."""
    check_lengths(
        ("sampling.stop_token_ids", len(message.stop_token_ids), MAX_STOP_TOKEN_IDS),
        ("sampling.logit_bias", len(message.logit_bias), MAX_LOGIT_BIAS),
        ("sampling.stop", len(message.stop), MAX_STOP_STRINGS),
    )
    for field, token_ids in (("stop_token_ids", message.stop_token_ids), ("logit_bias", message.logit_bias)):
        for token_id in token_ids:
            if not 0 <= token_id < limits.vocabulary_size:
                raise InvalidRequestError(f"{token_id} is not in the vocabulary", field=f"sampling.{field}")
    for token_id, bias in message.logit_bias.items():
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequestError(
                f"must be in [-{MAX_BIAS}, {MAX_BIAS}]; got {bias}", field=f"sampling.logit_bias[{token_id}]"
            )
    for index, stop in enumerate(message.stop):
        if not 1 <= len(stop) <= MAX_STOP_STRING_CHARACTERS:
            raise InvalidRequestError(
                f"must have 1 to {MAX_STOP_STRING_CHARACTERS} characters", field=f"sampling.stop[{index}]"
            )
    if sum(map(len, message.stop)) > MAX_STOP_CHARACTERS:
        raise InvalidRequestError(f"at most {MAX_STOP_CHARACTERS} characters in all", field="sampling.stop")


def _sampling(message: sampling_pb2.SamplingParams, limits: Limits, room: int) -> SamplingOptions:
    def number(name: str, default: float, valid: Callable[[float], bool], wanted: str) -> float:
        value: float = getattr(message, name) if message.HasField(name) else default  # type: ignore[arg-type]
        if not math.isfinite(value) or not valid(value):
            raise InvalidRequestError(f"must be {wanted}; got {value}", field=f"sampling.{name}")
        return value

    max_tokens = int(number("max_tokens", limits.default_max_tokens, lambda n: n >= 1, "at least 1"))
    if message.HasField("max_tokens") and max_tokens > room:
        raise InvalidRequestError(
            f"{max_tokens} tokens do not fit: the prompt leaves room for {room} of {limits.max_context_tokens}",
            field="sampling.max_tokens",
        )
    max_tokens = min(max_tokens, room)
    return SamplingOptions(
        max_tokens=max_tokens,
        temperature=number("temperature", 1.0, lambda v: 0 <= v <= 2, "in [0, 2]"),
        top_p=number("top_p", 1.0, lambda v: 0 < v <= 1, "in (0, 1]"),
        top_k=int(number("top_k", 0, lambda v: v >= 0, "0 or more")),
        min_p=number("min_p", 0.0, lambda v: 0 <= v <= 1, "in [0, 1]"),
        presence_penalty=number("presence_penalty", 0.0, lambda v: -2 <= v <= 2, "in [-2, 2]"),
        frequency_penalty=number("frequency_penalty", 0.0, lambda v: -2 <= v <= 2, "in [-2, 2]"),
        repetition_penalty=number("repetition_penalty", 1.0, lambda v: 0 < v <= 2, "in (0, 2]"),
        min_tokens=int(number("min_tokens", 0, lambda v: 0 <= v <= max_tokens, f"in [0, max_tokens = {max_tokens}]")),
        seed=message.seed if message.HasField("seed") else None,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=int(number("logprobs", 0, lambda v: 0 <= v <= MAX_LOGPROBS, f"in [0, {MAX_LOGPROBS}]"))
        if message.HasField("logprobs")
        else None,
        logit_bias=dict(message.logit_bias),
    )
