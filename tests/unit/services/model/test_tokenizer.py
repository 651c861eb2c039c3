"""Text to tokens and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.tokenizer import BrokenTokenizerError, ChatTemplateError, Tokenizer
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tiny_model(tmp_path_factory.mktemp("model")))


@given(text=st.text())
def test_streamed_text_is_the_decoded_text(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    ids = tokenizer.encode(text)
    assert "".join(stream.feed(token_id) for token_id in ids) + stream.flush() == tokenizer.decode(ids)


def test_half_a_character_is_held_back_and_flushed_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aé")
    stream = tokenizer.stream()
    assert [stream.feed(token_id) for token_id in ids[:2]] == ["a", ""]
    assert stream.flush() == "�"


def test_a_conversation_goes_through_the_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "<|user|>hi\n<|assistant|>"


def test_a_model_without_template_takes_no_conversation(tmp_path: Path) -> None:
    (write_tiny_model(tmp_path) / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateError, match="no chat template"):
        Tokenizer(tmp_path).encode_chat([{"role": "user", "content": "hi"}])


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    (write_tiny_model(tmp_path) / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        Tokenizer(tmp_path).encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_file_that_makes_no_sense_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (write_tiny_model(tmp_path) / name).write_bytes(content)
    with pytest.raises(BrokenTokenizerError, match=rf"{name} cannot be read: "):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% for a in messages %}{% for b in messages %}{% for c in messages %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% macro turns() %}{% for a in range(90000) %}{% endfor %}{% endmacro %}" + 4 * "{{ turns() }}",
    ],
)
def test_a_template_that_does_not_end_is_ended(tmp_path: Path, template: str) -> None:
    tokenizer = Tokenizer(write_tiny_model(tmp_path / "model"))
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    endless = Tokenizer(tmp_path / "model")
    conversation = [{"role": "user", "content": ""}] * 1000
    with pytest.raises(ChatTemplateError, match="refuses this conversation"):
        endless.encode_chat(conversation)
    assert tokenizer.encode_chat(conversation), "a template that goes through the messages once is far from the bound"
