"""What this project's design leaves open, and what an experiment takes out of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from services.slo.admission_options import DEFAULT_OPTIONS, AdmissionOptions
from services.slo.composer import ComposerPolicy
from simulator.knowledge import Knowledge
from simulator.machine import Machine

KNOWLEDGE = Knowledge()
POLICY = ComposerPolicy()


class Roles(enum.Enum):
    """Which workers compute prompts."""

    DISAGGREGATED = "disaggregated"
    LOCAL_PREFILL = "disaggregated, decode workers prefill on slack"
    COLOCATED = "co-located"


@dataclass(frozen=True, slots=True)
class Choices:
    """The design, and what an ablation takes out of it."""

    roles: Roles = Roles.COLOCATED
    prefills: int = 0
    """Workers that only prefill; co-located there are none."""
    knowledge: Knowledge = KNOWLEDGE
    admission: bool = True
    """Otherwise everyone is taken, by the worker with least to do."""
    best_effort: bool = True
    """Otherwise what is not guaranteed is refused."""
    composition: bool = True
    """Otherwise steps have a fixed budget, prompts come first come first served."""
    speculation: bool = False
    """Whether streams draft where the machine has a drafter, and plans count with it. It does not ship switched on."""
    one_worker_in_turn: bool = False
    """Whether the next worker in turn is asked first and alone, then the following, instead of all at once."""
    policy: ComposerPolicy = POLICY
    """What the composer may choose."""
    headroom_requests: float = 0.0
    """Number of typical requests for which headroom is kept whenever a costlier one is promised; 0: none."""
    cost_threshold: bool = True
    """Whether the costliest requests leave headroom during overload; without effect beside `headroom_requests`."""

    fair_shares: bool = True
    """Whether tenants are promised work in proportion to their weights."""
    tenant_weights: tuple[tuple[str, float], ...] = ()
    """Weights of tenants that are not 1."""

    def admission_options(self, machine: Machine) -> AdmissionOptions:
        """Return the options of admission: those that ship, but for what an experiment changes and the machine is."""
        return replace(
            DEFAULT_OPTIONS,
            local_prefill=self.roles is not Roles.DISAGGREGATED,
            headroom_requests=self.headroom_requests,
            cost_threshold=self.cost_threshold,
            fair_shares=self.fair_shares,
            tenant_weights=self.tenant_weights,
            one_worker_in_turn=self.one_worker_in_turn,
            # Simulated engines have a request at once.
            submission_s=0.0,
            draft_tokens=machine.max_draft_tokens if self.speculation else 0,
            draft_acceptance=machine.acceptance if self.speculation else 0.0,
        )
