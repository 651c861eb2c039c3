"""The planner: which requests can be guaranteed given everything promised, where each runs, and what the others hear.

`plan_round` decides about a cluster's pending requests, `plan_lane` about those of one worker or pair, `prefill_budget`
says what a worker can prefill beside its decodes, `CommittedLoad` counts what a worker has promised. Pure: no clock, no
I/O; compiled on first use. Read `problem`, `schedule` (the one test of feasibility), `solving`, `planning`.
"""

from services.slo.planner.ahead import ahead_s
from services.slo.planner.arrival_sample import ArrivalSample
from services.slo.planner.committed_load import Commitment, CommittedLoad
from services.slo.planner.cost_threshold import CostThreshold, ReservedHeadroom, reserved_headroom
from services.slo.planner.lane import PrefillBudget, plan_lane, prefill_budget
from services.slo.planner.outcome import Binding, Decision, Round, StepPlan, Verdict
from services.slo.planner.planning import plan_round
from services.slo.planner.problem import Candidate, Link, Problem, PromisedPrefill, Release, Topology, Worker
from services.slo.planner.solving import Solver
from services.slo.planner.warm_up import warm_up
from services.slo.planner.worker_profile import StepBound, Tiers, WorkerProfile

__all__ = [
    "ArrivalSample",
    "Binding",
    "Candidate",
    "Commitment",
    "CommittedLoad",
    "CostThreshold",
    "Decision",
    "Link",
    "PrefillBudget",
    "Problem",
    "PromisedPrefill",
    "Release",
    "ReservedHeadroom",
    "Round",
    "Solver",
    "StepBound",
    "StepPlan",
    "Tiers",
    "Topology",
    "Verdict",
    "Worker",
    "WorkerProfile",
    "ahead_s",
    "plan_lane",
    "plan_round",
    "prefill_budget",
    "reserved_headroom",
    "warm_up",
]
