"""The planner: which requests can be guaranteed given everything promised, where each runs, and what the others hear.

`plan_round` decides about a cluster's pending requests; `CommittedLoad` counts what a worker has promised. Pure: no
clock, no I/O. Numba compiles `kernels` on first use; until that is done they can be interpreted. Read `README.md`, then
`problem`, `planning`, `solving` and `kernels.schedule` (the one test of feasibility).
"""

from services.slo.planner.ahead import ahead_s
from services.slo.planner.arrival_sample import ArrivalSample
from services.slo.planner.committed_load import Commitment, CommittedLoad
from services.slo.planner.cost_threshold import CostThreshold, ReservedHeadroom, reserved_headroom
from services.slo.planner.kernels.compiled import interpret, machine_code_directory, machine_code_is_kept
from services.slo.planner.kernels.step_table import accepted_tokens
from services.slo.planner.outcome import Binding, Decision, Round, StepPlan, Verdict
from services.slo.planner.planning import plan_round
from services.slo.planner.problem import Candidate, Link, Problem, PromisedPrefill, Release, Topology, Worker
from services.slo.planner.standing import EVEN, OwedArrival, Standing
from services.slo.planner.warm_up import warm_up
from services.slo.planner.worker_profile import StepBound, Tiers, WorkerProfile

__all__ = [
    "EVEN",
    "ArrivalSample",
    "Binding",
    "Candidate",
    "Commitment",
    "CommittedLoad",
    "CostThreshold",
    "Decision",
    "Link",
    "OwedArrival",
    "Problem",
    "PromisedPrefill",
    "Release",
    "ReservedHeadroom",
    "Round",
    "Standing",
    "StepBound",
    "StepPlan",
    "Tiers",
    "Topology",
    "Verdict",
    "Worker",
    "WorkerProfile",
    "accepted_tokens",
    "ahead_s",
    "interpret",
    "machine_code_directory",
    "machine_code_is_kept",
    "plan_round",
    "reserved_headroom",
    "warm_up",
]
