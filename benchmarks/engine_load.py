"""What the engine benchmark asks of an engine."""

from __future__ import annotations

import argparse
import inspect
import itertools
import math
import random
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from services.engine.protocol import SamplingOptions
from services.model.tokenizer import Tokenizer
from services.slo.contract import (
    LOOSE_SLOWDOWN,
    LOOSE_TPOT_S,
    TIGHT_SLOWDOWN,
    TIGHT_TPOT_S,
    Contract,
    DecodeTarget,
    PrefillTarget,
)
from services.slo.performance import PerformanceModel

FIRST_TEXT_TOKEN, LAST_TEXT_TOKEN = 1000, 40_000
LONG_PROMPT_TOKENS = 2000
TIGHT_STEPS = 2.0
"""The tight TPOT (50 ms in the paper's profiles) in decode steps of this machine: about what it is on their GPUs."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The paper's targets on this machine."""

    step_s: float
    """Seconds that a step of four decodes takes."""
    idle: PerformanceModel
    max_step_tokens: int

    @property
    def tight_tpot_s(self) -> float:
        return TIGHT_STEPS * self.step_s

    @property
    def loose_tpot_s(self) -> float:
        return self.tight_tpot_s * LOOSE_TPOT_S / TIGHT_TPOT_S

    @property
    def long_prompt_s(self) -> float:
        """A prompt of `LONG_PROMPT_TOKENS` on the idle engine. Loads are stretched by it, to suit any machine."""
        return self.idle.prefill_s(LONG_PROMPT_TOKENS, self.max_step_tokens)

    def contract(self, prompt_tokens: int, slowdown: float, tpot_s: float) -> Contract:
        ttft_s = slowdown * self.idle.prefill_s(prompt_tokens, self.max_step_tokens)
        return Contract(PrefillTarget(ttft_s=ttft_s), (DecodeTarget(tpot_s),))


@dataclass(frozen=True, slots=True)
class Offered:
    """One request of a trace."""

    at_s: float
    profile: str
    token_ids: tuple[int, ...]
    max_tokens: int
    contract: Contract


def random_tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    """A prompt that shares no beginning with others."""
    return tuple(rng.randrange(FIRST_TEXT_TOKEN, LAST_TEXT_TOKEN) for _ in range(count))


def greedy(max_tokens: int) -> SamplingOptions:
    return SamplingOptions(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def mixed_trace(load: float, requests: int, scale: Scale) -> list[Offered]:
    """Chat, code and summaries; arrivals at random, the same for every engine.

    Args:
        load: share of an engine's time that the requests need, one after the other: prompts alone, tokens in steps of
            four.
    """
    rng = random.Random(f"{load}")
    drawn = [_mixed(rng, 0.0, scale) for _ in range(requests)]
    needed_s = sum(
        scale.idle.prefill_s(len(offered.token_ids), scale.max_step_tokens) + offered.max_tokens * scale.step_s / 4
        for offered in drawn
    )
    rate = load * requests / needed_s
    gaps_s = [rng.expovariate(rate) for _ in drawn]
    return [replace(offered, at_s=at_s) for offered, at_s in zip(drawn, itertools.accumulate(gaps_s), strict=True)]


def _mixed(rng: random.Random, at_s: float, scale: Scale) -> Offered:
    kind = rng.random()
    if kind < 0.5:
        profile, prompt_tokens, max_tokens = "chatbot", _between(rng, 64, 512), rng.randint(24, 64)
        contract = scale.contract(prompt_tokens, LOOSE_SLOWDOWN, scale.loose_tpot_s)
    elif kind < 0.75:
        profile, prompt_tokens, max_tokens = "coder", _between(rng, 96, 640), rng.randint(32, 64)
        contract = scale.contract(prompt_tokens, LOOSE_SLOWDOWN, scale.tight_tpot_s)
    else:
        profile, prompt_tokens, max_tokens = "summarizer", _between(rng, 1000, 2000), rng.randint(8, 24)
        contract = scale.contract(prompt_tokens, TIGHT_SLOWDOWN, scale.loose_tpot_s)
    return Offered(at_s, profile, random_tokens(rng, prompt_tokens), max_tokens, contract)


def _between(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def texts(model_dir: Path) -> Iterator[tuple[int, ...]]:
    """Passages of prose and code that every Python brings along, 240 tokens each."""
    text = "".join(Path(module.__file__ or "").read_text() for module in (argparse, inspect, typing))
    ids = Tokenizer(model_dir).encode(text)
    for start in range(0, len(ids) - 240, 240):
        yield tuple(ids[start : start + 240])
