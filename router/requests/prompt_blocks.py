"""The blocks that a prompt begins with, named by keyed digests of their tokens."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

from services.slo.kv_blocks import shareable_blocks

DIGESTED_PROMPTS = 64
"""Number of prompts whose digests are kept: a prompt is asked about in every round until it has a verdict, when it is
sent and when it is computed."""

_KEY = secrets.token_bytes(32)
"""Without this key nobody can tell from a digest in a recording what a prompt was. It lives as long as the process."""


class TokenBlocks:
    """The blocks of one prompt. Satisfies `PromptBlocks` of the admission core.

    Equal prompts of different salts have no block in common, as in the engines' caches: else what a client is quoted
    would tell what clients of another salt have sent.

    Digests are remembered for the object, not for equal prompts: hashing a long prompt to look for them takes longer
    than all else that is done with them.
    """

    __slots__ = ("prompt", "salt")

    def __init__(self, prompt: Sequence[int], salt: str = "") -> None:
        """
        Args:
            salt: salt of the prompt's tenant, of at most 16 bytes in hexadecimal; empty if all tenants share.
        """
        self.prompt = tuple(prompt)
        self.salt = bytes.fromhex(salt)

    def of(self, block_tokens: int) -> Sequence[str]:
        """Return one digest of 16 bytes, in hexadecimal, for each full block, of the block and everything before it.

        The last token stays out, because an engine always computes it.
        """
        return _digests(self, block_tokens)


@lru_cache(maxsize=DIGESTED_PROMPTS)
def _digests(blocks: TokenBlocks, block_tokens: int) -> tuple[str, ...]:
    prompt, digests = blocks.prompt, []
    running = blake2b(digest_size=16, key=_KEY, salt=blocks.salt)
    for index in range(shareable_blocks(len(prompt), block_tokens)):
        end = (index + 1) * block_tokens
        running.update(array("q", prompt[end - block_tokens : end]).tobytes())
        digests.append(running.copy().hexdigest())
    return tuple(digests)
