"""What this project's design leaves open, and what an experiment takes out of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.slo.composer import ComposerPolicy
from simulator.belief import Knowledge

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
    speculation: bool = True
    ring: bool = False
    """The next worker in turn is asked first and alone, then the following, instead of all at once."""
    policy: ComposerPolicy = POLICY
    """Of the composer."""
    newcomers: float = 0.0
    """So many typical requests find room beside what is promised to a larger one; 0: none needs to."""
    price: bool = True
    """While not everybody finds room, the dearest leave some; without effect beside `newcomers`."""
