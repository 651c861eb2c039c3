"""The arithmetic of KV blocks."""

from __future__ import annotations


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Return how many blocks of `block_tokens` tokens hold the KV cache of `tokens` tokens."""
    return -(-tokens // block_tokens)
