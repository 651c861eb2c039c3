"""Prompts whose text from real clusters is compared with that of one stock vLLM engine.

All are cut from the same text, each from a beginning of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.text import text_tokens

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = (1, 15, 16, 17, 127, 128, 129, 1000, 2000)
LOCAL_LENGTHS = (1, 33, 128, 400, 129, 700, 31, 1000, 255, 2000, 64, 600)
TOKENS = 24
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
PENALTIES = {"frequency_penalty": 0.7, "presence_penalty": 0.4, "repetition_penalty": 1.1}


def alone(model_dir: Path) -> list[list[int]]:
    """Return prompts of lengths around those of KV blocks and chunks, to be sent one after the other."""
    text = text_tokens(model_dir, 30_000)
    return [text[100 * index : 100 * index + length] for index, length in enumerate(LENGTHS)]


def crowd(model_dir: Path) -> list[list[int]]:
    """Return sixteen prompts of all kinds of lengths, to be sent at once."""
    text = text_tokens(model_dir, 30_000)
    lengths = [*LENGTHS, 3, 33, 64, 255, 256, 400, 700]
    return [text[7000 + 50 * index : 7000 + 50 * index + length] for index, length in enumerate(lengths)]


def local(model_dir: Path) -> list[list[int]]:
    """Return prompts to be sent at once to decode workers that prefill too."""
    text = text_tokens(model_dir, 30_000)
    return [text[90 * index : 90 * index + length] for index, length in enumerate(LOCAL_LENGTHS)]


def batches(model_dir: Path) -> dict[str, dict[str, Any]]:
    """Return by name what the stock engine is asked."""
    return {
        "alone": {"prompts": alone(model_dir), "sampling": GREEDY},
        "crowd": {"prompts": crowd(model_dir), "sampling": GREEDY},
        "penalties": {"prompts": alone(model_dir)[2:6], "sampling": {**GREEDY, **PENALTIES}},
        "local": {"prompts": local(model_dir), "sampling": GREEDY},
    }
