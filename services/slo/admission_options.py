"""The settings of admission, each with the default that a router ships with and a simulation measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.slo.step_coverage import STEP_COVERAGE


@dataclass(frozen=True, slots=True)
class AdmissionOptions:
    """Settings of one admission core.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    local_prefill: bool = False
    """Decode workers may compute the prompts of requests that they will decode, as far as their promises leave room."""
    best_effort_patience_s: float = 30.0
    """A request without a guarantee is ranked as if its first token were due so many seconds after its arrival."""
    max_hold_s: float = 1.0
    """A request that finds no room now, but will soon, has its verdict at most so many seconds after its arrival."""
    headroom_requests: float = 0.0
    """Number of typical requests for which headroom is kept whenever a costlier one is promised; 0 keeps none."""
    cost_threshold: bool = True
    """During overload the costliest requests relative to their value get a guarantee only where headroom is left."""
    fair_shares: bool = True
    """While not everybody finds room, tenants are promised work in proportion to their weights. Nothing changes while
    one tenant is alone."""
    tenant_weights: tuple[tuple[str, float], ...] = ()
    """Weights of tenants by name; that of `default` is for all that are not named."""
    step_coverage: float = STEP_COVERAGE
    """Share of steps that keep the step-time bound which promises are made against. At overload the plan is tight at
    all times, and about as many promises are kept as steps are within their bound."""
    handover_coverage: float = 0.95
    """Share of hand-overs that keep their bound, counted in steps that are bounds themselves. A rarer hand-over is one
    in a few hundred seen, and one stall of the machine would forbid every promise until it is forgotten."""
    coalesce_s: float = 2e-3
    """Arrivals that are this close together, in seconds, are planned in one round."""
    planning_share: float = 0.1
    """Share of time that planning may take: after a long round arrivals are gathered for longer."""
    submission_s: float = 4e-3
    """A prompt sent to a busy worker later than this before a step began is not in that step: engines compose a step
    before the report of the one before has reached the router. Measured with gRPC between processes of one host."""
    refit_s: float = 1.0
    """Seconds for which a worker's step table and the links between workers serve: building a table costs more than a
    round."""
    reuse_worker_s: float = 0.05
    """Seconds for which a decode worker is planned with as it was seen, if no request came to it or left it: all that
    changes meanwhile are forecasts of when its requests end."""
    sampled_workers: int = 8
    """Number of workers of a pool that are compared for a request without a promise; a larger pool is sampled."""
    workers_per_aged: int = 4
    """For every so many workers that compute prompts, one request without a promise that has outwaited its patience has
    room in the plan at a time: it cannot starve, and lasting overload cannot take the place of promises either."""
    draft_tokens: int = 0
    """Draft tokens per stream and step that plans count with; 0 plans without speculation, as shipped."""
    draft_acceptance: float = 0.0
    """Probability that a draft token is accepted, for plans that count with drafts."""
    one_worker_in_turn: bool = False
    """Each request is offered to one worker after another, round robin, instead of to all at once. Only the ablation of
    routing turns it on."""

    def __post_init__(self) -> None:
        for name in ("best_effort_patience_s", "coalesce_s", "planning_share", "refit_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and positive; got {value}")
        for name in ("max_hold_s", "headroom_requests", "submission_s", "reuse_worker_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative; got {value}")
        for name in ("step_coverage", "handover_coverage"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1; got {getattr(self, name)}")
        if not all(math.isfinite(weight) and weight > 0 for _, weight in self.tenant_weights):
            raise ValueError(f"tenant_weights must be finite and positive; got {self.tenant_weights}")
        for name in ("sampled_workers", "workers_per_aged"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.draft_tokens < 0 or not 0 <= self.draft_acceptance < 1:
            raise ValueError(
                f"draft_tokens must not be negative and draft_acceptance must be at least 0 and below 1; "
                f"got {self.draft_tokens} and {self.draft_acceptance}"
            )


DEFAULT_OPTIONS = AdmissionOptions()
"""Admission as it ships: the defaults of the router's configuration and of the simulator."""
