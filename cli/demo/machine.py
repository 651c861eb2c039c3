"""The speed of a machine, as the demo measures it while it warms up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one request, measured while every worker ran one like it."""

    prompt_tokens: int
    ttft_s: float
    """Seconds from arrival to first token."""
    decode_step_s: float
    """Seconds per token after the first one, mean of the request."""
    second_token_s: float
    """Seconds per token that every token kept; the second token decides it, which a KV hand-over makes wait."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The speed of one worker while all workers compute: a prompt's time is linear in its tokens."""

    workers: int
    """Number of workers that compute prompts."""
    prefill_overhead_s: float
    """Seconds that the first token takes besides those of the prompt's tokens."""
    per_prompt_token_s: float
    decode_step_s: float
    """Seconds of a decode step with one request."""
    second_token_s: float
    """Seconds from the first token to the second."""
    bound_ratio: float = 1.0
    """Ratio of the bound that the router promises against to the time that it expects; at least 1."""

    def prefill_s(self, prompt_tokens: int) -> float:
        """Return the seconds in which an idle worker computes a prompt."""
        return self.prefill_overhead_s + self.per_prompt_token_s * prompt_tokens


def machine_of(short: Sequence[Timing], long: Sequence[Timing], workers: int, bound_ratio: float) -> Machine:
    """Return the machine that showed these timings; medians count, so that one disturbed request does not.

    Args:
        short, long: timings of prompts of two lengths, at least one of each.
        workers: number of workers that compute prompts.
    """
    short_s, long_s = median(timing.ttft_s for timing in short), median(timing.ttft_s for timing in long)
    short_tokens = median(timing.prompt_tokens for timing in short)
    long_tokens = median(timing.prompt_tokens for timing in long)
    # Where a disturbance makes the short prompt the slower one, the whole time counts as that of tokens.
    slope_s = (long_s - short_s) / (long_tokens - short_tokens)
    per_token_s = min(max(slope_s, 0.0) or long_s / long_tokens, long_s / long_tokens)
    everything = [*short, *long]
    return Machine(
        workers=workers,
        prefill_overhead_s=long_s - per_token_s * long_tokens,
        per_prompt_token_s=per_token_s,
        decode_step_s=median(timing.decode_step_s for timing in everything),
        second_token_s=median(timing.second_token_s for timing in everything),
        bound_ratio=max(1.0, bound_ratio),
    )
