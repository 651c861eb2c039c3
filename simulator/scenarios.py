"""Scenarios: the six applications of the SLOs-Serve paper, with their contracts and requests like theirs.

Lengths and arrivals of chat and code are fitted to the published statistics of the Azure traces of November 2023; of
the other scenarios no statistics were found, so those are this project's own and marked so in `Scenario.origin`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.slo.contract import PAPER_PROFILES, Contract
from simulator.request import OfferedRequest
from simulator.traces import Traced

AZURE, OWN = "Azure LLM inference traces 2023, published statistics", "assumed: no statistics are published"


class UnknownScenarioError(Exception):
    """There is no such scenario; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class ClippedLengths:
    """Log-normally distributed numbers of tokens, clipped at both ends."""

    median: float
    sigma: float
    """Standard deviation of the logarithm."""
    most: int
    least: int = 2

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a number of tokens."""
        return int(np.clip(rng.lognormal(math.log(self.median), self.sigma), self.least, self.most))


@dataclass(frozen=True, slots=True)
class Application:
    """One kind of request: its contract, and how lengths and rounds are distributed."""

    profile: str
    """Name of its contract in `PAPER_PROFILES`."""
    prompt: ClippedLengths
    output: ClippedLengths
    thinking: ClippedLengths | None = None
    """Tokens of a first decode stage before the output."""
    rounds: tuple[int, int] = (1, 1)
    """Least and greatest number of requests of a session."""
    turn: ClippedLengths | None = None
    """Tokens that each further round adds to the context, besides the output before."""
    tool_s: float = 0.0
    """Median seconds between an answer and the next round of its session."""


CHAT = Application("chatbot", ClippedLengths(1020, 0.75, 4142), ClippedLengths(165, 0.75, 800))
CODE = Application("coder", ClippedLengths(1469, 0.85, 7436), ClippedLengths(13, 1.25, 1000))
SUMMARY = Application("summarizer", ClippedLengths(3000, 0.5, 12_000), ClippedLengths(180, 0.4, 500))
TOOL = Application(
    "tool_use",
    ClippedLengths(1200, 0.4, 4000),
    ClippedLengths(60, 0.6, 400),
    rounds=(2, 5),
    turn=ClippedLengths(250, 0.7, 1500),
    tool_s=1.0,
)
REASONING = Application(
    "reasoning", ClippedLengths(200, 0.8, 2000), ClippedLengths(350, 0.5, 1500), ClippedLengths(1400, 0.7, 8000)
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A mix of applications and how bursty it comes."""

    name: str
    applications: tuple[Application, ...]
    gap_cv: float
    """Coefficient of variation of the gaps between arrivals; 1 is Poisson."""
    origin: str
    """Where lengths and arrivals come from."""

    @property
    def contracts(self) -> tuple[Contract, ...]:
        """The contracts of its applications."""
        return tuple(PAPER_PROFILES[application.profile] for application in self.applications)

    @property
    def tightest_tpot_s(self) -> float:
        """The tightest TPOT target of its applications, final rounds of sessions apart."""
        return min(target.tpot_s for contract in self.contracts for target in contract.decode)


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("chatbot", (CHAT,), 1.09, AZURE),
        Scenario("coder", (CODE,), 13.0, AZURE),
        Scenario("summarizer", (SUMMARY,), 1.0, OWN),
        Scenario("mixed", (CHAT, CODE, SUMMARY), 1.0, "the three above in equal parts"),
        Scenario("toolllm", (TOOL,), 1.0, OWN),
        Scenario("reasoning", (REASONING,), 1.0, OWN),
    )
}


def scenario(name: str) -> Scenario:
    """Return the scenario of that name.

    Raises:
        UnknownScenarioError: there is none.
    """
    try:
        return SCENARIOS[name]
    except KeyError:
        raise UnknownScenarioError(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}") from None


def generate(wanted: Scenario, sessions: int, seed: int | tuple[int, ...], first: int = 0) -> list[OfferedRequest]:
    """Generate sessions, one a second on average; `at_rate` makes them come at another rate.

    Args:
        first: number of the first session; sessions with different numbers share no beginnings of prompts.
    """
    rng = np.random.default_rng(seed)
    gaps_s = bursty_gaps(rng, sessions, wanted.gap_cv)
    at_s = np.cumsum(gaps_s) - gaps_s[0]
    if sessions > 1:
        at_s *= (sessions - 1) / at_s[-1]
    choices = rng.integers(len(wanted.applications), size=sessions)
    return [
        _session(rng, wanted.applications[int(choice)], float(at), index)
        for index, (at, choice) in enumerate(zip(at_s, choices, strict=True), first)
    ]


def bursty_gaps(rng: np.random.Generator, count: int, cv: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Draw gaps between arrivals, of mean 1 and coefficient of variation `cv`; the array has shape [count].

    Up to a CV of 1.1 they are exponential. Above, two exponentials are mixed: short gaps within bursts take a tenth of
    the time, and long gaps between bursts make up the mean and the variation.
    """
    if cv <= 1.1:
        return rng.exponential(1.0, count)
    # With share p of rate-1/long gaps: mean p*long + (1-p)*short = 1 and second moment 2(p*long^2 + (1-p)*short^2) =
    # 1 + cv^2. Short gaps take a tenth of the time.
    short_share = 0.1
    share = 2 * (1 - short_share) ** 2 / (1 + cv * cv)
    long_s, short_s = (1 - short_share) / share, short_share / (1 - share)
    picked = rng.random(count) < share
    gaps = np.where(picked, rng.exponential(long_s, count), rng.exponential(short_s, count))
    return np.asarray(gaps / gaps.mean())


def from_trace(traced: Sequence[Traced], profile: str) -> list[OfferedRequest]:
    """Return all requests of a trace with the contract of a profile, one a second on average."""
    contract = PAPER_PROFILES[profile]
    span_s = max(traced[-1].at_s - traced[0].at_s, 1e-9)
    rate = max(1, len(traced) - 1) / span_s
    return [
        OfferedRequest(
            (request.at_s - traced[0].at_s) * rate,
            profile,
            request.prompt_tokens,
            request.output_tokens,
            contract,
            prefix=request.prefix,
        )
        for request in traced
    ]


def at_rate(offered: Sequence[OfferedRequest], requests_per_s: float, of: range | None = None) -> list[OfferedRequest]:
    """Return the same requests at another rate, rounds of sessions counted, by stretching their arrival times.

    Args:
        of: indices of the sessions that come at this rate, if not all taken together.
    """
    part = offered if of is None else offered[of.start : of.stop]
    sessions_per_s = requests_per_s * len(part) / sum(request.rounds for request in part)
    span_s = part[-1].at_s - part[0].at_s
    stretch = (len(part) - 1) / (span_s * sessions_per_s) if span_s > 0 else 0.0
    return [replace(request, at_s=(request.at_s - offered[0].at_s) * stretch) for request in offered]


def _session(rng: np.random.Generator, kind: Application, at_s: float, index: int) -> OfferedRequest:
    rounds = int(rng.integers(kind.rounds[0], kind.rounds[1] + 1))
    contract = PAPER_PROFILES[kind.profile]
    if rounds > 1 or contract.final_decode:
        contract = replace(contract, session_id=f"s{index}", session_final=True)
    prompt, makers = kind.prompt.draw(rng), []
    for _ in range(rounds):
        thinking = kind.thinking.draw(rng) if kind.thinking is not None else 0
        output = thinking + kind.output.draw(rng)
        delay_s = float(rng.lognormal(math.log(kind.tool_s), 0.5)) if kind.tool_s else 0.0
        makers.append((prompt, output, thinking, delay_s))
        prompt += output + (kind.turn.draw(rng) if kind.turn is not None else 0)
    return _chain(kind, contract, at_s, index, makers)


_PREFIX_BLOCK = 64


def _chain(
    kind: Application, contract: Contract, at_s: float, index: int, makers: Sequence[tuple[int, int, int, float]]
) -> OfferedRequest:
    follow_up: OfferedRequest | None = None
    for prompt, output, thinking, delay_s in reversed(makers):
        follow_up = OfferedRequest(
            at_s,
            kind.profile,
            prompt,
            output,
            contract,
            thinking,
            tuple((index << 20) + block for block in range(prompt // _PREFIX_BLOCK)) if len(makers) > 1 else (),
            _PREFIX_BLOCK,
            follow_up,
            delay_s,
        )
    assert follow_up is not None
    return follow_up
