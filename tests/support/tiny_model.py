"""A model directory without weights: enough for a router and for emulated engines."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

END_OF_TEXT = 2
FIRST_BYTE = 17
VOCABULARY_SIZE = 1024
MAX_CONTEXT_TOKENS = 8192
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tiny_model(directory: Path) -> Path:
    """One token a byte; ids above the bytes are words `w300 ` and so on, so that any id has a text."""
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {f"<special{index}>": index for index in range(FIRST_BYTE)}
    vocabulary |= {letter: FIRST_BYTE + index for index, letter in enumerate(alphabet)}
    vocabulary |= {f"w{index}Ġ": index for index in range(len(vocabulary), VOCABULARY_SIZE)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([f"<special{index}>" for index in range(FIRST_BYTE)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": f"<special{END_OF_TEXT}>"}))
    config = {
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": MAX_CONTEXT_TOKENS,
        "eos_token_id": END_OF_TEXT,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory
