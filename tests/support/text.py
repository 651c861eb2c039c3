"""Real text as tokens."""

from __future__ import annotations

import argparse
import inspect
import typing
from pathlib import Path

from services.model.tokenizer import Tokenizer


def text_tokens(model_dir: Path, count: int) -> list[int]:
    """The first tokens of prose and source code that every Python brings along."""
    text = "".join(Path(module.__file__ or "").read_text() for module in (argparse, inspect, typing))
    ids = Tokenizer(model_dir).encode(text)
    assert len(ids) >= count
    return ids[:count]
