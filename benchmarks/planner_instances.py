"""Random planning problems of one prefill worker, small enough to know the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.slo.planner.outcome import Round
from services.slo.planner.problem import Candidate, Link, Problem, PromisedPrefill, Topology, Worker
from services.slo.planner.worker_profile import StepBound, Tiers, WorkerProfile

ADDITIVE = StepBound(
    overhead_s=5.6e-3,
    per_token_s=20.4e-6,
    per_request_s=6.8e-6,
    per_context_token_s=32e-9,
    per_attention_pair_s=2e-9,
    per_draft_step_s=0.4e-3,
)
"""Step times that add up: 0.4 times what is known of Qwen2.5-7B on an A100."""
ROOFLINE = StepBound(
    overhead_s=2e-3,
    per_token_s=22e-6,
    per_request_s=8e-6,
    per_attention_pair_s=2e-9,
    per_draft_step_s=0.4e-3,
    memory_s=5e-3,
    memory_per_context_token_s=35e-9,
    memory_per_work=0.1,
)
"""Step times of which reading or computing bounds each. Chosen, of the size of `ADDITIVE`."""
TPOTS_S = (0.05, 0.1, 0.035, 0.2)
"""TPOTs of the tiers, in seconds; with fewer tiers, the first of them. Chosen."""


@dataclass(frozen=True)
class Kind:
    """What kind of instances to draw."""

    pending: int
    """Number of candidates."""
    tiers: int = 2
    """Number of tiers."""
    speculative: bool = False
    """Whether up to four tokens are drafted."""
    colocated: bool = False
    """Whether one worker prefills and decodes, rather than a pair."""
    equal_values: bool = True
    """Whether all candidates have the same value."""
    running: int = 32
    """Number of running decodes."""
    promised: int = 0
    """Number of promised prefills."""
    tight_memory: bool = False
    """Whether only half of the candidates have memory to decode in."""
    roofline: bool = False
    """Whether steps take as in `ROOFLINE`, rather than as in `ADDITIVE`."""
    overload: float = 2.0
    """Prefill work of all candidates over the time until their last deadline."""


def tiers_of(kind: Kind) -> Tiers:
    """Return the tiers of an instance."""
    tpots = tuple(sorted(TPOTS_S[: kind.tiers]))
    if not kind.speculative:
        return Tiers(tpots)
    return Tiers(tpots, tuple(0.8 - 0.1 * (index % 2) for index in range(kind.tiers)), 4)


def draw(kind: Kind, seed: int) -> Problem:
    """Return the instance of a kind that belongs to a seed."""
    rng = np.random.default_rng([seed, kind.pending, kind.tiers, kind.colocated, kind.speculative])
    tiers = tiers_of(kind)
    profile = WorkerProfile(ROOFLINE if kind.roofline else ADDITIVE, tiers, int(rng.choice([512, 2048, 8192])))
    running = tuple(rng.multinomial(kind.running, np.full(kind.tiers, 1 / kind.tiers)).tolist())
    context = tuple(int(count * rng.integers(300, 1200)) for count in running)
    prompts = np.clip(rng.lognormal(np.log(665), 0.8, kind.pending), 16, 4096).astype(int)
    work_s = float(prompts.sum()) * profile.bound.per_token_s * 1.4
    horizon_s = max(0.03, work_s / kind.overload)
    kv_tokens = prompts + rng.integers(20, 600, kind.pending)
    candidates = tuple(
        Candidate(
            candidate_id=f"c{index}",
            prompt_tokens=int(prompts[index]),
            kv_tokens=int(kv_tokens[index]),
            deadline_s=float(rng.uniform(0.15, 1.0) * horizon_s + 0.02),
            tier=int(rng.integers(kind.tiers)),
            value=1.0 if kind.equal_values else float(rng.choice([1.0, 1.0, 2.0, 5.0])),
        )
        for index in range(kind.pending)
    )
    kv_free = int(kv_tokens.sum() * 0.5) if kind.tight_memory else 1_000_000
    promised = tuple(
        PromisedPrefill(
            deadline_s=float(rng.uniform(-0.1, 1.0) * horizon_s),
            prompt_tokens=int(rng.integers(50, 1500)),
            decode_tier=int(rng.integers(kind.tiers)) if kind.colocated else -1,
            kv_tokens=1600,
        )
        for _ in range(kind.promised)
    )
    busy_s = float(rng.uniform(0, 0.02))
    workers: tuple[Worker, ...]
    if kind.colocated:
        workers = (
            Worker("w", profile, True, True, kv_free, 2_000_000, running, context, busy_s=busy_s, promised=promised),
        )
    else:
        workers = (
            Worker("p", profile, True, False, 1_000_000, 2_000_000, busy_s=busy_s, promised=promised),
            Worker("d", profile, False, True, kv_free, 2_000_000, running, context, handover_steps=1.0),
        )
    return Problem(workers, Topology.of(workers, Link(1e-3)), candidates, seed=seed)


def value_of(problem: Problem, outcome: Round) -> float:
    """Return the sum of the values of the candidates that the round guarantees."""
    return sum(
        candidate.value
        for candidate, decision in zip(problem.candidates, outcome.decisions, strict=True)
        if decision.guaranteed
    )
