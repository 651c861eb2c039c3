"""Bodies of HTTP requests: OpenAI's fields with vLLM's extensions, checked and turned into calls of the client."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, from_json

from gateway.http_errors import invalid
from services.contract.body import KEY, SloBody
from services.model.request_limits import MAX_BIAS, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_MESSAGES
from services.shown import clipped
from slos_serve import Message, Prompt, Sampling

OPENAI_COMPLETION_TOKENS = 16
"""Default of `max_tokens` in /v1/completions, which is OpenAI's own."""
MAX_COMMAS = 2**18
"""Commas of a body at most, and so values of its JSON: reading a value takes a microsecond in which nobody is served.
A prompt of token ids has one for each token, a text of English one in a hundred characters."""

MAX_UNKNOWN = 256
"""Fields of a body at most that are not known: vLLM and OpenAI together have fewer than half as many."""
MAX_SEARCHED_QUOTES = 2**14
"""Quotes of a body up to which searching its text is quicker than reading it once more."""
_BELOW = frozenset(SloBody.model_fields) - {"value", "session_id", "session_final"}
"""Fields of the contract that mean nothing else, so that whoever writes them beside `slo` meant the contract."""
_MISSPELLINGS = r"(?i:[-_ ]{0,4}(?:x[-_])?sl[oai]s?(?:[-_ :][^\"]*)?|sol|lso|sloo|sslo|s-l-o|s_l_o)"
_MISSPELT = re.compile(_MISSPELLINGS)
"""Names that stand for the contract by mistake: `SLO`, `slos`, `sla`, `x-slo-ttft-ms`, `slo_ttft_ms`."""
_TRACE = re.compile(rf'"(?!slo")(?:{"|".join(sorted(_BELOW))}|{_MISSPELLINGS})"\s*:'.encode())
"""Text that a body has somewhere if it has such a name, or a contract that is written as it must be."""

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Body = TypeVar("Body", bound=BaseModel)
Item = TypeVar("Item")

FirstFault = Annotated[list[Item], Field(fail_fast=True)]
"""List of which only the first item at fault is reported: a client may send a hundred thousand of them."""


def _check_biases(biases: dict[str, Any]) -> dict[str, float]:
    """Return the biases of a body, whose keys and values are looked at up to the first that makes no sense."""
    if len(biases) > MAX_LOGIT_BIAS:
        raise PydanticCustomError(
            "too_many", "at most {most} entries; got {count}", {"most": MAX_LOGIT_BIAS, "count": len(biases)}
        )
    for key, bias in biases.items():
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:  # NaN is not within any bounds
            raise PydanticCustomError(
                "no_bias",
                "the bias of {key} must be a number in [-{most}, {most}]",
                {"key": repr(clipped(key)), "most": MAX_BIAS},
            )
    return biases


Biases = Annotated[dict[str, Any], AfterValidator(_check_biases)]


class Strict(BaseModel):
    """A body is read strictly: a string is no number, NaN is no number, and fields of later versions are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    """Whether every chunk has the usage so far, if `include_usage` is set; the field is vLLM's."""


class Generation(Strict):
    """The fields that both endpoints share."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int32 | None = None
    seed: Int64 | None = None
    stop: str | FirstFault[str] | None = Field(None, union_mode="left_to_right")
    stop_token_ids: FirstFault[Int32] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool | None = None
    logit_bias: Biases | None = None
    slo: SloBody | None = None
    response_format: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def counts_in_chunks(self) -> bool:
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """Return how tokens are drawn.

        Raises:
            HttpError: a key of `logit_bias` is no token id.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            # -1 keeps all tokens in vLLM's interface, 0 in ours.
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            logit_bias={_token_id(key): bias for key, bias in (self.logit_bias or {}).items()},
            logprobs=logprobs,
        )


class CompletionBody(Generation):
    """The body of POST /v1/completions."""

    prompt: str | FirstFault[str] | FirstFault[Int32] | FirstFault[FirstFault[Int32]] = Field(
        union_mode="left_to_right"
    )
    max_tokens: Int32 | None = None
    logprobs: Int32 | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    def prompt_of(self) -> Prompt:
        """Return the prompt.

        Raises:
            HttpError: the body has more than one prompt.
        """
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        nested = [item for item in prompt if not isinstance(item, int)]
        if not nested:
            return [item for item in prompt if isinstance(item, int)]
        if len(prompt) > 1:
            raise invalid("prompt", f"one prompt a request; got {len(prompt)}", code="unsupported_value")
        return nested[0]


class TextPart(Strict):
    type: str
    text: str | None = None


class ChatMessageBody(Strict):
    role: str
    content: str | FirstFault[TextPart] | None = Field(None, union_mode="left_to_right")


class ChatBody(Generation):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[FirstFault[ChatMessageBody], Field(max_length=MAX_MESSAGES)]
    max_tokens: Int32 | None = None
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None

    def prompt_of(self) -> Prompt:
        """Return the conversation.

        Raises:
            HttpError: a part of a message is no text.
        """
        return [_message(index, message) for index, message in enumerate(self.messages)]


def _message(index: int, message: ChatMessageBody) -> Message:
    # OpenAI's newer name of the system role; templates know the older one.
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str) or message.content is None:
        return Message(role, message.content or "")
    for position, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            path = f"messages[{index}].content[{position}]"
            raise invalid(
                path, f"only parts of type text are served; got {clipped(part.type)!r}", code="unsupported_value"
            )
    return Message(role, "".join(part.text or "" for part in message.content))


def _token_id(key: str) -> int:
    if key.isascii() and key.removeprefix("-").isdecimal() and len(key) <= 11 and -(2**31) <= int(key) < 2**31:
        return int(key)
    raise invalid(f"logit_bias.{clipped(key)}", "keys are token ids")


Unsupported = tuple[str, Callable[[Any], bool], str]

_EVERYWHERE: Sequence[Unsupported] = (
    ("n", lambda n: n not in (None, 1), "one choice a request: n must be 1"),
    (
        "response_format",
        lambda form: form is not None and form.get("type") != "text",
        "only plain text is served",
    ),
)
_COMPLETION: Sequence[Unsupported] = (
    *_EVERYWHERE,
    ("best_of", lambda best_of: best_of not in (None, 1), "one choice a request: best_of must be 1"),
    ("echo", bool, "the prompt is not echoed"),
    ("suffix", bool, "text is continued, never inserted"),
)
_CHAT: Sequence[Unsupported] = (
    *_EVERYWHERE,
    ("tools", bool, "tools are not rendered by the server; put them into the messages"),
    ("functions", bool, "functions are not rendered by the server; put them into the messages"),
)


def parse_completion(content: bytes) -> CompletionBody:
    """Read the body of a request to /v1/completions.

    Raises:
        HttpError: 400, with the field at fault.
    """
    return _parse(CompletionBody, content, _COMPLETION)


def parse_chat(content: bytes) -> ChatBody:
    """Read the body of a request to /v1/chat/completions.

    Raises:
        HttpError: 400, with the field at fault.
    """
    body = _parse(ChatBody, content, _CHAT)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs to be true")
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MAX_LOGPROBS:
        raise invalid("top_logprobs", f"must be in [0, {MAX_LOGPROBS}]; got {body.top_logprobs}")
    return body


def _parse(kind: type[Body], content: bytes, unsupported: Sequence[Unsupported]) -> Body:
    if content.count(b",") > MAX_COMMAS:
        raise invalid(None, f"more than {MAX_COMMAS} values", code="body_too_complex")
    try:
        body = kind.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        if fault["type"] == "json_invalid":
            raise invalid(None, f"the body is no JSON: {fault['msg']}", code="invalid_json") from error
        code = "missing_required_parameter" if fault["type"] == "missing" else "invalid_type"
        raise invalid(_path(fault["loc"]), fault["msg"], code=code) from error
    _check_misspelt(content, kind)
    for name, refuses, message in unsupported:
        if refuses(getattr(body, name)):
            raise invalid(name, message, code="unsupported_value")
    return body


def _check_misspelt(content: bytes, kind: type[BaseModel]) -> None:
    """Refuse a body with a contract in a field that is not known, which would promise nothing and say nothing.

    Args:
        content: a body that `kind` has read.

    Raises:
        HttpError: a field is a misspelt `slo` or belongs below it, or there are too many fields to look at.
    """
    # Unknown fields are dropped as they are read, because keeping them takes ten times as long; few bodies need it.
    if content.count(b'"') <= MAX_SEARCHED_QUOTES and _TRACE.search(content) is None:
        return
    unknown = from_json(content).keys() - kind.model_fields.keys()
    if len(unknown) > MAX_UNKNOWN:
        raise invalid(None, f"more than {MAX_UNKNOWN} fields that are not known", code="body_too_complex")
    for name in sorted(unknown):
        if name in _BELOW:
            raise invalid(name, f"belongs below {KEY!r}", code="unknown_parameter")
        if _MISSPELT.fullmatch(name):
            raise invalid(clipped(name), f"no such field; the contract is {KEY!r}", code="unknown_parameter")


def _path(location: Sequence[int | str]) -> str | None:
    """Return pydantic's location of a fault as a path (`messages[0].content`), without its names for union members."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.replace("_", "").isalnum():
            path += f".{part}" if path else part
        if path in _UNIONS:
            break
    return path or None


_UNIONS = frozenset({"prompt", "stop"})
