"""What this project's design leaves open, and what an experiment takes out of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.slo.composer import ComposerPolicy
from simulator.knowledge import Knowledge

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
