"""Workers and requests whose schedules can be worked out by hand: a step takes 10 ms and 1 ms for every token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from services.slo.planner import (
    Candidate,
    Decision,
    Link,
    Problem,
    Round,
    StepBound,
    Tiers,
    Topology,
    Worker,
    WorkerProfile,
    plan_round,
)
from services.slo.planner.kernels.greedy import place
from services.slo.planner.kernels.plan_state import PlanState
from services.slo.planner.packing import CHOICES, pack

BOUND = StepBound(0.01, 1e-3)
TIERS = Tiers((0.05, 0.1))
PROFILE = WorkerProfile(BOUND, TIERS, max_step_tokens=512, max_step_s=0.1)
"""Without decodes a step takes 0.1 s: 10 ms before any prompt, 89 tokens of prompts, and one token for rounding."""


def prefiller(name: str = "p", **changes: object) -> Worker:
    """Return a worker that only prefills."""
    return replace(Worker(name, PROFILE, True, False, 100_000, 100_000), **changes)  # type: ignore[arg-type]


def decoder(name: str = "d", **changes: object) -> Worker:
    """Return a worker that only decodes."""
    return replace(Worker(name, PROFILE, False, True, 100_000, 100_000), **changes)  # type: ignore[arg-type]


def colocated(name: str = "w", **changes: object) -> Worker:
    """Return a worker that prefills and decodes."""
    return replace(Worker(name, PROFILE, True, True, 100_000, 100_000), **changes)  # type: ignore[arg-type]


def ask(name: str = "c", prompt_tokens: int = 50, **changes: object) -> Candidate:
    """Return a request with 100 tokens of output that is due in 10 s, at a TPOT of 0.1 s."""
    asked = Candidate(name, prompt_tokens, prompt_tokens + 100, 10.0, 1)
    return replace(asked, **changes)  # type: ignore[arg-type]


def problem_of(workers: list[Worker], *candidates: Candidate, **changes: object) -> Problem:
    """Return a round of all workers; without a link of its own, a KV cache moves in no time."""
    topology = changes.pop("topology", Topology.of(workers, Link(0.0)))
    return Problem(workers, topology, candidates, **changes)  # type: ignore[arg-type]


def plan(workers: list[Worker], *candidates: Candidate, **changes: object) -> Round:
    """Return the outcome of a round of all workers."""
    return plan_round(problem_of(workers, *candidates, **changes))


def decide(workers: list[Worker], *candidates: Candidate, **changes: object) -> Decision:
    """Return the answer to the first candidate."""
    return plan(workers, *candidates, **changes).decisions[0]


def guaranteed(workers: list[Worker], *candidates: Candidate, **changes: object) -> list[str]:
    """Return the names of the candidates that are guaranteed."""
    outcome = plan(workers, *candidates, **changes)
    return [decision.candidate_id for decision in outcome.decisions if decision.guaranteed]


def placed_greedily(problem: Problem) -> PlanState:
    """Return the round's arrays, with everyone placed who fits without search."""
    state = pack(problem, 1e9).state
    place(state, CHOICES, np.full(len(problem.candidates), -1, dtype=np.int64))
    return state
