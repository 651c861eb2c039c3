"""Log probabilities in the two forms of OpenAI's interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slos_serve import TokenLogprob

TokenText = Callable[[int], str]
"""Returns the text of one token by itself."""

LEAST_LOGPROB = -9999.0
"""Smallest logarithm that is shown, in place of minus infinity as well; the figure is vLLM's and OpenAI's."""

Position = tuple[TokenLogprob, ...]


def token_name(token_id: int) -> str:
    """Return the name that vLLM gives a token without a text; it stands for the text if there is no tokenizer here."""
    return f"token_id:{token_id}"


def chat_logprobs(positions: Sequence[Position], count: int, text_of: TokenText) -> dict[str, Any]:
    """Return log probabilities as `/v1/chat/completions` shows them.

    Args:
        positions: candidates of every token, the chosen one first.
        count: number of likeliest candidates to show at each position.
    """
    return {
        "content": [
            {**_entry(position[0], text_of), "top_logprobs": [_entry(item, text_of) for item in _top(position, count)]}
            for position in positions
            if position
        ],
        "refusal": None,
    }


def completion_logprobs(
    positions: Sequence[Position], count: int, text_of: TokenText, offset: int
) -> tuple[dict[str, Any], int]:
    """Return log probabilities as `/v1/completions` shows them.

    Args:
        positions: candidates of every token, the chosen one first.
        count: number of likeliest candidates to show at each position.
        offset: characters of the text before these tokens.

    Returns:
        The JSON and the offset after them.
    """
    chosen = [position[0] for position in positions if position]
    tokens = [text_of(item.token_id) for item in chosen]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops: list[dict[str, float] | None] = [
        {text_of(item.token_id): _finite(item.logprob) for item in (position[0], *_top(position, count))}
        if count
        else None
        for position in positions
        if position
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(item.logprob) for item in chosen],
        "top_logprobs": tops,
        "text_offset": offsets,
    }, offset


def _top(position: Position, count: int) -> list[TokenLogprob]:
    unique = {item.token_id: item for item in position}
    return sorted(unique.values(), key=lambda item: item.rank)[:count]


def _finite(logprob: float) -> float:
    """Return a logarithm of a probability as JSON can say it, which has no infinity."""
    return max(logprob, LEAST_LOGPROB)


def _entry(item: TokenLogprob, text_of: TokenText) -> dict[str, Any]:
    text = text_of(item.token_id)
    return {"token": text, "logprob": _finite(item.logprob), "bytes": list(text.encode(errors="replace"))}
