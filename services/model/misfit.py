"""The limits that a model itself sets to a prompt: its context length and its vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Misfit:
    """The reason why a model cannot take a prompt."""

    detail: str
    """The reason in words, for whoever sent the prompt."""
    position: int | None = None
    """Index of the token at fault; None if no single token is."""


def misfit(token_ids: Sequence[int], vocabulary_size: int, max_context_tokens: int) -> Misfit | None:
    """Return why a model with these limits cannot continue a prompt; None if it can.

    Args:
        token_ids: the prompt, with the output so far if a request is continued.
        max_context_tokens: tokens of prompt and output together; at least one of them must be left for output.
    """
    if not token_ids:
        return Misfit("the prompt is empty")
    for extreme in (min(token_ids), max(token_ids)):
        if not 0 <= extreme < vocabulary_size:
            detail = f"{extreme} is not in the vocabulary of {vocabulary_size} tokens"
            return Misfit(detail, token_ids.index(extreme))
    if len(token_ids) >= max_context_tokens:
        return Misfit(too_long(len(token_ids), max_context_tokens))
    return None


def too_long(prompt_tokens: int, max_context_tokens: int) -> str:
    """Return the words in which a prompt that leaves no token for output is refused."""
    return f"the prompt has {prompt_tokens} tokens; the model takes {max_context_tokens}, output included"
