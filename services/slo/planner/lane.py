"""One worker, or one pair, on its own: its prefill budget, and its best set of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.slo.planner.compiled import Floats, entry
from services.slo.planner.layout import BASE, DRAFT, FLOOR, PER_TIER, ROOM, ROW, STATE_COUNTS
from services.slo.planner.outcome import Round
from services.slo.planner.planning import plan_round
from services.slo.planner.problem import Candidate, Link, Problem, Topology, Worker
from services.slo.planner.solving import Solver
from services.slo.planner.step_table import choose_step
from services.slo.planner.worker_profile import WorkerProfile


@dataclass(frozen=True, slots=True)
class PrefillBudget:
    """What a worker can prefill while it keeps every decode's rate."""

    tokens: int
    """Of prompts without attention to speak of; long contexts use the same time for fewer."""
    work_s: float
    """Seconds of computing, step overheads excluded."""
    step_s: float
    """Step length that leaves the most."""
    draft_tokens: tuple[int, ...]
    """Draft length of each tier at that step length; 0 where nobody decodes."""


@entry
def _budget_step(worker: Floats, table: Floats, tiers: int, counts: Floats, found: Floats) -> bool:
    return choose_step(worker, table, tiers, counts, found)


def prefill_budget(
    profile: WorkerProfile, counts: Sequence[int], context_tokens: Sequence[int], seconds: float
) -> PrefillBudget | None:
    """PB(seconds; counts): whole steps of the best length, and what is left of a last one.

    Args:
        counts, context_tokens: of each tier.

    Returns:
        None if the worker cannot keep up with these decodes at all.
    """
    worker = Worker("", profile, True, True, 0, 0, tuple(counts), tuple(context_tokens))
    tiers = len(profile.tiers.tpot_s)
    found = np.zeros(STATE_COUNTS)
    held = np.array([*counts, *context_tokens], dtype=np.float64)
    if not _budget_step(worker.row, profile.step_table, tiers, held, found):
        return None
    base_s, room_s, floor_s = found[BASE], found[ROOM], found[FLOOR]
    step_s = max(base_s + room_s, floor_s)
    full = math.floor(max(0.0, seconds) / step_s)
    work_s = full * room_s + min(room_s, max(0.0, seconds - full * step_s - base_s))
    row = profile.step_table[int(found[ROW])]
    drafts = tuple(max(0, int(row[1 + PER_TIER * tier + DRAFT])) if counts[tier] else 0 for tier in range(tiers))
    return PrefillBudget(int(work_s / profile.bound.per_token_s), float(work_s), float(step_s), drafts)


def plan_lane(
    lane: Worker,
    candidates: Sequence[Candidate],
    decoder: Worker | None = None,
    link: Link | None = None,
    work_limit: int = 0,
    solver: Solver = Solver.ALL,
) -> Round:
    """`plan_round` for a single lane whose candidates all decode on `decoder`, or on the lane itself without one."""
    workers = (lane,) if decoder is None else (lane, decoder)
    problem = Problem(
        workers,
        Topology.of(workers, link),
        tuple(candidates),
        work_limit=work_limit,
    )
    return plan_round(problem, solver)
