"""Compiling the planner before the first request needs it."""

from __future__ import annotations

import math
from dataclasses import replace

from services.slo.planner.kernels.compiled import in_machine_code, note_that_machine_code_is_kept
from services.slo.planner.planning import plan_round
from services.slo.planner.problem import Candidate, Link, Problem, PromisedPrefill, Release, Topology, Worker
from services.slo.planner.standing import OwedArrival, Standing
from services.slo.planner.worker_profile import StepBound, Tiers, WorkerProfile


def warm_up() -> None:
    """Plan small rounds that go through every compiled part, and note that all machine code is kept.

    The first time takes half a minute of a processor; from the cache 0.2 s.
    """
    with in_machine_code():
        _plan_small_rounds()
    note_that_machine_code_is_kept()


def _plan_small_rounds() -> None:
    profile = WorkerProfile(StepBound(0.01, 1e-4, per_context_token_s=1e-7), Tiers((0.05, 0.1)), 512)
    workers = (
        Worker("p", profile, True, False, 4096, 4096, promised=(PromisedPrefill(1.0, 100),)),
        Worker("d", profile, True, True, 4096, 4096, (1, 1), (100, 100), releases=(Release(1.0, 1, 100, 0),)),
    )
    topology = Topology.of(workers, Link(1e-3, 1e9), {("p", "d"): Link(2e-3, 1e9)}, 1.0)
    candidates = tuple(
        Candidate("", 200 * (index + 1), 200 * (index + 1) + 10, deadline_s, tier, 1.0 + index % 2)
        for index, (deadline_s, tier) in enumerate(((0.2, 0), (0.3, 1), (math.inf, -1), (0.1, 1), (0.15, 0), (9.0, 0)))
    )
    for pending in (candidates, candidates * 4):
        named = tuple(
            replace(candidate, candidate_id=f"c{index}", standing=Standing(leaves_room=True))
            for index, candidate in enumerate(pending)
        )
        owed = OwedArrival(100.0, 120.0, 0.2, 0.5)
        plan_round(Problem(workers, topology, named, typical_arrival=named[0], owed_arrival=owed))
