"""A request that has passed every check that needs no cluster, and has no verdict yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.requests.parsed_request import ParsedRequest, request_facts
from router.requests.planning_log import PlanningLog
from services.slo.admission import Arrival
from services.slo.contract import Contract
from services.telemetry.traces import Trace


@dataclass(frozen=True, slots=True)
class UndecidedRequest:
    """A request without a verdict. Times are on the router's clock, in seconds."""

    parsed: ParsedRequest
    contract: Contract
    """The contract as asked for: a slowdown is still one."""
    arrival_s: float
    task_due_s: float | None = None
    """When the whole task that it belongs to must be done."""
    planning: PlanningLog = field(default_factory=PlanningLog)
    """Notes of the planning rounds that the request takes part in."""
    trace: Trace | None = None

    @property
    def arrival(self) -> Arrival:
        """The request as the admission core is told of it."""
        return Arrival(request_facts(self.parsed), self.contract, self.arrival_s, self.task_due_s)
