"""The targets that the demo asks for: those of the SLOs-Serve paper, stretched to what the machine can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cli.demo.machine import Machine
from services.slo.contract import PAPER_PROFILES, TIGHT_TPOT_S
from slos_serve import Achieved, Contract, DecodeTarget, OnOverload, PrefillTarget

HEADROOM = 2.0
"""Multiple of the bound on the time that a burst needs at the least, within which it is asked for."""
MOST_HEADROOM = 8.0
"""Multiple of the time that a burst needs at the least, beyond which nothing is asked, however uncertain the machine's
times are."""
LONG_TO_SHORT = 6.0
"""Ratio of the times of a long and a short prompt in the burst: with less, a short one may wait for a long one and be
in time nevertheless."""
MOST_TEXTS = 12
"""Most texts in a long prompt, about 4,500 tokens."""
TPOT_STEPS = 5
"""Decode steps of a single request that the tight TPOT lasts. Steps with prompts in them that no promise bounds are up
to eight times as long as the shortest (`ComposerPolicy.max_step_multiple`)."""
TPOT_HANDOVERS = 3
"""Multiple of an idle second token's time that the tight TPOT lasts: a KV hand-over waits for up to three steps."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one request, in seconds."""

    ttft_s: float
    tpot_s: float

    def contract(self, profile: str, on_overload: OnOverload | None = None) -> Contract:
        """Return the contract that asks for these targets under the name of a profile."""
        return Contract(
            profile=profile,
            prefill=PrefillTarget(ttft_s=self.ttft_s),
            decode=(DecodeTarget(self.tpot_s),),
            on_overload=on_overload,
        )

    def kept_by(self, achieved: Achieved) -> bool:
        """Return whether a request met these targets with every token, whether it was promised or not."""
        return achieved.ttft_s <= self.ttft_s and achieved.tpot_s <= self.tpot_s


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt of the burst as targets see it."""

    profile: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """The factors by which the paper's targets are multiplied; equal for all profiles, so that their ratios stay."""

    ttft: float
    """Factor of the slowdowns of the paper, never below 1."""
    tpot: float
    """Factor of the times per token of the paper."""

    def targets(self, ask: Ask, machine: Machine) -> Targets:
        """Return the targets of a prompt on a machine."""
        return Targets(ttft_s=self.ttft * _paper_ttft_s(ask, machine), tpot_s=self.tpot * _paper_tpot_s(ask.profile))


def stretch_for(machine: Machine, burst: Sequence[Ask]) -> Stretch:
    """Return the factors that let a machine serve a burst in time with `HEADROOM`.

    Prompts are computed by due time, spread over the workers. The TTFT factor is the smallest at which each is in time
    behind those that are due before it; every prompt must be one of a paper's profile.
    """
    needed, work_s = 1e-9, 0.0
    for ask in sorted(burst, key=lambda ask: _paper_ttft_s(ask, machine)):
        work_s += machine.per_prompt_token_s * ask.prompt_tokens / machine.workers
        needed = max(needed, (machine.prefill_overhead_s + work_s) / _paper_ttft_s(ask, machine))
    tight_tpot_s = max(TPOT_STEPS * machine.decode_step_s, TPOT_HANDOVERS * machine.second_token_s)
    headroom = min(HEADROOM * machine.bound_ratio, MOST_HEADROOM)
    return Stretch(ttft=max(1.0, headroom * needed), tpot=tight_tpot_s / TIGHT_TPOT_S)


def texts_in_long_prompt(machine: Machine, short_tokens: int, tokens_per_text: int) -> int:
    """Return how many texts make a prompt that takes `LONG_TO_SHORT` times as long as a short one."""
    wanted_s = LONG_TO_SHORT * machine.prefill_s(short_tokens) - machine.prefill_overhead_s
    texts = math.ceil(wanted_s / (machine.per_prompt_token_s * tokens_per_text))
    return min(max(texts, 1), MOST_TEXTS)


def _paper_ttft_s(ask: Ask, machine: Machine) -> float:
    ttft_s = PAPER_PROFILES[ask.profile].ttft_s(machine.prefill_s(ask.prompt_tokens))
    assert ttft_s is not None, "every profile of the paper has a TTFT target"
    return ttft_s


def _paper_tpot_s(profile: str) -> float:
    tpot_s = PAPER_PROFILES[profile].tightest_tpot_s
    assert tpot_s is not None, "every profile of the paper has a TPOT target"
    return tpot_s
