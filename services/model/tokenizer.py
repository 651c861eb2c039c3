"""Conversion of text to token ids and back, without torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

MAX_TEMPLATE_STEPS = 250_000
"""Turns of all loops of a chat template together while one conversation is rendered, a tenth of a second of them: sixty
for each of the most messages that a request may have."""
_STEP = "_count_step"
"""Name of the function that a template calls in every turn of a loop; it is added when the template is compiled."""


class ChatTemplateError(ValueError):
    """The model has no chat template, or it refuses the conversation."""


class BrokenTokenizerError(Exception):
    """A file of a tokenizer cannot be read; the message names it."""


class Tokenizer:
    """The tokenizer of a model. It does not change, so that it can be shared."""

    def __init__(self, model_dir: Path) -> None:
        """Load the tokenizer of a model directory.

        Raises:
            FileNotFoundError: there is no `tokenizer.json`; slow tokenizers are not supported.
            BrokenTokenizerError: one of its files makes no sense.
        """
        file = model_dir / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: only models with a fast tokenizer can be served")
        try:
            self._tokenizer = FastTokenizer.from_file(str(file))
        except Exception as error:  # The library raises nothing more special.
            raise BrokenTokenizerError(f"{file} cannot be read: {error}") from error
        self.longest_token_characters = max((len(token) for token in self._tokenizer.get_vocab()), default=1)
        """Most characters of text that one token can stand for."""
        config_file = model_dir / "tokenizer_config.json"
        try:
            config: dict[str, Any] = json.loads(config_file.read_bytes()) if config_file.is_file() else {}
        except (OSError, ValueError) as error:
            raise BrokenTokenizerError(f"{config_file} cannot be read: {error}") from error
        self._special = {
            name: _token_text(config[name])
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if config.get(name)
        }
        self._template = _compile(_template_source(model_dir, config))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt, with the special tokens that the model expects around it."""
        return self._ids(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a conversation in the model's chat template, ready for the assistant's answer.

        Raises:
            ChatTemplateError: there is no template, or it refuses the conversation.
        """
        if self._template is None:
            raise ChatTemplateError("this model has no chat template; send text or token ids")
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._special,
                **{_STEP: _StepCounter()},
            )
        except (jinja2.TemplateError, RecursionError) as error:
            raise ChatTemplateError(f"the chat template refuses this conversation: {error}") from error
        return self._ids(text, add_special_tokens=False)

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # This variant skips the offsets into the text, which nobody needs, and takes a third of the time.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """Begin a text whose tokens come one by one."""
        return TextStream(self._tokenizer, skip_special_tokens)


class TextStream:
    """Turns tokens into text one by one, and holds back what is not yet a whole character."""

    def __init__(self, tokenizer: FastTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        """Return the text that is certain with this token; it may be empty in the middle of a character."""
        text: str | None = self._stream.step(self._tokenizer, token_id)
        if text is None:
            self._pending.append(token_id)
            return ""
        if self._pending:
            self._pending.clear()
        return text

    def flush(self) -> str:
        """Return the text of the last tokens although the character that they began was never finished."""
        pending, self._pending = self._pending, []
        if not pending:
            return ""
        text: str = self._tokenizer.decode(pending, skip_special_tokens=self._skip_special_tokens)
        return text


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _template_source(model_dir: Path, config: Mapping[str, Any]) -> str | None:
    file = model_dir / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    source = config.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return source


class _StepCounter:
    """Counts the turns of all loops of one rendering, and ends it when there are too many."""

    def __init__(self) -> None:
        self._left = MAX_TEMPLATE_STEPS

    def __call__(self) -> str:
        """
        Raises:
            TemplateError: the loops have turned `MAX_TEMPLATE_STEPS` times.
        """
        self._left -= 1
        if self._left < 0:
            raise jinja2.TemplateError(f"its loops turn more than {MAX_TEMPLATE_STEPS} times")
        return ""


def _counted(template: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """Return a template whose loops count their turns: a sandbox bounds what it reaches, not how long it runs."""
    for loop in template.find_all(jinja2.nodes.For):
        counter = jinja2.nodes.Call(jinja2.nodes.Name(_STEP, "load"), [], [], None, None)
        loop.body.insert(0, jinja2.nodes.ExprStmt(counter, lineno=loop.lineno))
    return template


def _compile(source: str | None) -> jinja2.Template | None:
    if source is None:
        return None

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now(UTC).astimezone().strftime(form)

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # A template is downloaded with the model, and so is not trusted: it runs in the sandbox.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(_counted(environment.parse(source)))
