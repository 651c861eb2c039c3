"""Tokens that are made up: each is a function of the tokens before it and of the sampling options, and nothing else.

A prompt with the tokens generated so far therefore goes on in the same way on every engine with the same vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.engine.protocol import FinishReason, SamplingOptions, TokenLogprob

LEAST_LIKELY_CHOICE = 0.4
"""Probability that a chosen token has at least, so that it is always the likeliest but for ties."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens that may be made up."""

    size: int
    eos_token_id: int
    special_tokens: int
    """Number of ids, from 0 on, that are never drawn, the end-of-sequence token apart."""
    mean_output_tokens: int
    """Number of draws of which one is the end-of-sequence token, on average."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One token of output, and what it means for its request."""

    token_id: int
    logprobs: tuple[TokenLogprob, ...] | None
    """Log probabilities of the chosen token, then of the likeliest others; None unless asked for."""
    finish_reason: FinishReason | None
    stop_token_id: int | None


def context_digest(token_ids: Sequence[int]) -> str:
    """Return a name of a context, by which two engines can tell whether they speak of the same one."""
    return hashlib.blake2b(_encode(token_ids), digest_size=16).hexdigest()


class TokenStream:
    """The context of one request, which grows by one token with each draw."""

    __slots__ = (
        "_hash",
        "_max_context_tokens",
        "_sampling",
        "_seed",
        "_stop_token_ids",
        "_vocabulary",
        "context_tokens",
        "generated_tokens",
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        sampling: SamplingOptions,
        token_ids: Sequence[int],
        generated_tokens: int,
        max_context_tokens: int,
    ) -> None:
        """Begin with a context whose last `generated_tokens` tokens are output that exists already."""
        self._vocabulary = vocabulary
        self._sampling = sampling
        self._max_context_tokens = max_context_tokens
        self._stop_token_ids = frozenset(sampling.stop_token_ids)
        self._hash = hashlib.blake2b(_encode(token_ids), digest_size=16)
        seeded = sampling.temperature > 0 and sampling.seed is not None
        self._seed = str(sampling.seed).encode() if seeded else b""
        self.context_tokens = len(token_ids)
        self.generated_tokens = generated_tokens

    def context_digest(self) -> str:
        """Return `context_digest` of the context so far."""
        return self._hash.hexdigest()

    def draw(self) -> Draw:
        """Append the next token to the context, and return it."""
        digest = self._digest()
        may_stop = self.generated_tokens >= self._sampling.min_tokens
        token_id = self._token(digest, may_stop)
        self._hash.update(_encode((token_id,)))
        self.context_tokens += 1
        self.generated_tokens += 1
        is_eos = token_id == self._vocabulary.eos_token_id and not self._sampling.ignore_eos
        stops = may_stop and (is_eos or token_id in self._stop_token_ids)
        return Draw(
            token_id=token_id,
            logprobs=self._logprobs(digest, token_id),
            finish_reason=FinishReason.STOP if stops else self._length(),
            stop_token_id=token_id if stops else None,
        )

    def _digest(self) -> bytes:
        if not self._seed:
            return self._hash.digest()
        seeded = self._hash.copy()
        seeded.update(self._seed)
        return seeded.digest()

    def _token(self, digest: bytes, may_stop: bool) -> int:
        vocabulary = self._vocabulary
        ends = int.from_bytes(digest[:4], "little") % vocabulary.mean_output_tokens == 0
        if ends and may_stop and not self._sampling.ignore_eos:
            return vocabulary.eos_token_id
        plain_tokens = vocabulary.size - vocabulary.special_tokens
        first = int.from_bytes(digest[4:12], "little")
        for offset in range(plain_tokens):
            token_id = vocabulary.special_tokens + (first + offset) % plain_tokens
            if token_id != vocabulary.eos_token_id and (may_stop or token_id not in self._stop_token_ids):
                return token_id
        return vocabulary.special_tokens + first % plain_tokens

    def _length(self) -> FinishReason | None:
        full = self.generated_tokens >= self._sampling.max_tokens or self.context_tokens >= self._max_context_tokens
        return FinishReason.LENGTH if full else None

    def _logprobs(self, digest: bytes, token_id: int) -> tuple[TokenLogprob, ...] | None:
        """Return log probabilities: the chosen token's is made from the digest, each less likely one has half of the
        rest.
        """
        if self._sampling.logprobs is None:
            return None
        vocabulary = self._vocabulary
        chosen = LEAST_LIKELY_CHOICE + (0.99 - LEAST_LIKELY_CHOICE) * int.from_bytes(digest[12:], "little") / 2**32
        entries = [TokenLogprob(token_id, math.log(chosen), 1)]
        rest = math.log1p(-chosen)
        plain_tokens = vocabulary.size - vocabulary.special_tokens
        for rank in range(2, min(self._sampling.logprobs, plain_tokens) + 1):
            other = vocabulary.special_tokens + (token_id - vocabulary.special_tokens + rank - 1) % plain_tokens
            entries.append(TokenLogprob(other, rest - (rank - 1) * math.log(2), rank))
        return tuple(entries)


def _encode(token_ids: Sequence[int]) -> bytes:
    return np.asarray(token_ids, dtype="<i4").tobytes()
