"""The arithmetic of the KV blocks that a KV cache is allotted and shared in."""

from __future__ import annotations


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Return how many blocks of `block_tokens` tokens hold the KV cache of `tokens` tokens."""
    return -(-tokens // block_tokens)


def shareable_blocks(prompt_tokens: int, block_tokens: int) -> int:
    """Return how many blocks of a prompt another prompt can find in a prefix cache.

    Only full blocks are shared. The last token belongs to none of them, because an engine always computes it.
    """
    return (prompt_tokens - 1) // block_tokens
