"""The report of the scheduler inside EngineCore to the front end, with each step.

It travels as plain values inside `SchedulerStats.kv_connector_stats`, the one field of vLLM's typed step message that
takes any content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from services.engine.kv.handle import KvPull, LeaseOutcome
from services.engine.protocol import EngineLoad, Scheduling
from services.slo.performance import StepShape

STATS_KEY = "slos_serve"
"""Key of the report in that field."""


@dataclass(frozen=True, slots=True)
class CoreReport:
    """The report of one engine step as measured in EngineCore. Ids are EngineCore's, not the caller's."""

    step: int
    duration_s: float
    shape: StepShape
    load: EngineLoad
    closed_leases: Mapping[str, LeaseOutcome] = field(default_factory=dict)
    pulls: Mapping[str, KvPull] = field(default_factory=dict)
    recomputes: Mapping[str, str] = field(default_factory=dict)
    """Reasons why a KV cache is computed here although a pull was asked for, by request."""
    scheduling: Scheduling = field(default_factory=Scheduling)
    prefilled: Mapping[str, int] = field(default_factory=dict)
    """Number of tokens that are computed now, of each prompt of which the step computed a part."""

    def to_wire(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "duration_s": self.duration_s,
            "shape": list(astuple(self.shape)),
            "load": list(astuple(self.load)),
            "closed": {lease_id: outcome.value for lease_id, outcome in self.closed_leases.items()},
            "pulls": {request_id: list(astuple(pull)) for request_id, pull in self.pulls.items()},
            "recomputes": dict(self.recomputes),
            "scheduling": list(astuple(self.scheduling)),
            "prefilled": dict(self.prefilled),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> CoreReport:
        return cls(
            step=wire["step"],
            duration_s=wire["duration_s"],
            shape=StepShape(*wire["shape"]),
            load=EngineLoad(*wire["load"]),
            closed_leases={lease_id: LeaseOutcome(value) for lease_id, value in wire["closed"].items()},
            pulls={request_id: KvPull(*pull) for request_id, pull in wire["pulls"].items()},
            recomputes=wire["recomputes"],
            scheduling=Scheduling(*wire["scheduling"]),
            prefilled=wire["prefilled"],
        )
