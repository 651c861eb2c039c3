"""What an engine says about its own scheduling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from services.engine.protocol import Scheduling
from slos_serve.v1 import inference_pb2

RECENT_STEPS = 200
"""Steps over which means are taken: of older ones a third of the weight is left."""


@dataclass(slots=True)
class EngineFigures:
    """How well one engine predicts its own steps, and what its scheduler has done. Steps without a forecast say
    nothing.
    """

    latest: Scheduling = field(default_factory=Scheduling)
    steps: int = 0
    within_bound: int = 0
    error: float = 0.0
    """Of recent predictions, relative to what the steps took."""
    compose_s: float = 0.0
    """Mean of recent steps."""

    def observe(self, scheduling: Scheduling, took_s: float) -> None:
        """A step took so long."""
        self.latest = scheduling
        if not (scheduling.predicted_s > 0 and took_s > 0 and math.isfinite(scheduling.predicted_s + took_s)):
            return
        self.steps += 1
        self.within_bound += took_s <= scheduling.bound_s
        weight = 1.0 / min(self.steps, RECENT_STEPS)
        self.error += weight * (abs(scheduling.predicted_s - took_s) / took_s - self.error)
        self.compose_s += weight * (scheduling.compose_s - self.compose_s)

    def message(self) -> inference_pb2.SchedulingState | None:
        """None before the engine said anything."""
        if not self.steps:
            return None
        latest = self.latest
        return inference_pb2.SchedulingState(
            prediction_error=self.error,
            bound_coverage=self.within_bound / self.steps,
            compose_s=self.compose_s,
            preempted=latest.preempted,
            held=latest.held,
            contracts_missing=latest.contracts_missing,
            contracts_malformed=latest.contracts_malformed,
            drafted=latest.drafted,
            accepted=latest.accepted,
        )
