"""The output that a continued request brings along at the end of its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm import SamplingParams

CARRIED_KEY = "slos_carried_tokens"
"""Key in vLLM's `extra_args`: number of tokens at the end of the prompt that are output generated elsewhere."""


def carried_tokens(params: SamplingParams | None) -> int:
    """Return how many tokens at the end of a request's prompt are output generated elsewhere."""
    tokens = 0 if params is None else (params.extra_args or {}).get(CARRIED_KEY, 0)
    return tokens if isinstance(tokens, int) else 0
