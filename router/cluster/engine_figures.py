"""The accuracy of an engine's forecasts of its own steps, from what it reports with each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from services.engine.protocol import Scheduling
from slos_serve.v1 import inference_pb2

RECENT_STEPS = 200
"""Number of steps over which means are taken; steps older than that keep a third of the weight."""


@dataclass(slots=True)
class EngineFigures:
    """Accuracy of one engine's forecasts of its own steps, and counts of what its scheduler has done.

    Steps without a forecast are left out.
    """

    latest: Scheduling = field(default_factory=Scheduling)
    """The latest report, whose counts are totals since the engine started."""
    steps: int = 0
    """Number of steps with a forecast."""
    within_bound: int = 0
    """Number of them that took no longer than their bound."""
    error: float = 0.0
    """Mean error of recent forecasts, relative to what the steps took."""
    compose_s: float = 0.0
    """Mean seconds that recent steps took to compose."""

    def observe(self, scheduling: Scheduling, took_s: float) -> None:
        """Take the report about a step that took `took_s` seconds."""
        self.latest = scheduling
        if not (scheduling.predicted_s > 0 and took_s > 0 and math.isfinite(scheduling.predicted_s + took_s)):
            return
        self.steps += 1
        self.within_bound += took_s <= scheduling.bound_s
        weight = 1.0 / min(self.steps, RECENT_STEPS)
        self.error += weight * (abs(scheduling.predicted_s - took_s) / took_s - self.error)
        self.compose_s += weight * (scheduling.compose_s - self.compose_s)

    def message(self) -> inference_pb2.SchedulingState | None:
        """Return the figures as they go over the wire; None before the first step with a forecast."""
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
