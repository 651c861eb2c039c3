"""Prompts of made-up tokens: of a length, and alike only where they are meant to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_TOKENS = 512
"""That one `hash_id` of a Mooncake trace stands for."""
_SHARED, _OWN = 0, 1


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Ids to choose from: no special tokens, and in every vocabulary of today's models."""

    first: int = 1000
    last: int = 30_000


DEFAULT_RANGE = TokenRange()


def unshared(tokens: int, seed: int, number: int, among: TokenRange = DEFAULT_RANGE) -> list[int]:
    """A prompt that begins like no other number's."""
    return _drawn(tokens, (seed, _OWN, number), among)


def with_prefix(
    tokens: int,
    blocks: Sequence[int],
    seed: int,
    number: int,
    among: TokenRange = DEFAULT_RANGE,
    block_tokens: int = BLOCK_TOKENS,
) -> list[int]:
    """A prompt whose blocks are the same wherever their ids are the same; what they leave open is `number`'s own."""
    prompt: list[int] = []
    for piece in _pieces(tokens, blocks, seed, number, among, block_tokens):
        prompt += piece
    return prompt


def _pieces(
    tokens: int, blocks: Sequence[int], seed: int, number: int, among: TokenRange, block_tokens: int
) -> Iterator[list[int]]:
    for block in blocks:
        if tokens <= 0:
            return
        yield _drawn(block_tokens, (seed, _SHARED, block % 2**63), among)[:tokens]
        tokens -= block_tokens
    if tokens > 0:
        yield unshared(tokens, seed, number, among)


def _drawn(tokens: int, seed: tuple[int, ...], among: TokenRange) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(among.first, among.last, tokens, endpoint=True).tolist()
    return drawn
