"""What this project's design leaves open, and what an experiment takes out of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from services.slo.composer import Policy
from services.slo.composer.promise import LONGEST_GAP
from simulator.belief import Knowledge

KNOWLEDGE = Knowledge()
TUNED = Policy(skips=False, buffer=0.25)
"""Kept more promises than the composer's defaults in nearly every scenario tried; see `docs/capacity.md`."""


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
    prefill_cap_s: float = 0.1
    """No step of a worker that only prefills is longer."""
    policy: Policy = TUNED
    """Of the composer."""
    mixed_cap: float = LONGEST_GAP
    """What the planner takes for the longest step of a worker that also decodes, while nobody does: a multiple of the
    tightest TPOT. The composer goes so far when a promised prompt is short of time."""
