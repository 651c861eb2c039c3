"""What this router has counted since it started."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from router.requests.live_request import LiveRequest
from slos_serve.v1 import inference_pb2


@dataclass(slots=True)
class Counters:
    """Field names are those of the wire message."""

    received: int = 0
    guaranteed: int = 0
    best_effort: int = 0
    refused: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    kept: int = 0
    missed: int = 0
    restarts: int = 0
    kv_recomputes: int = 0
    workers_lost: int = 0
    rounds: int = 0
    planning_s: float = 0.0

    def admit(self, request: LiveRequest) -> None:
        if request.guaranteed:
            self.guaranteed += 1
        else:
            self.best_effort += 1

    def finish(self, request: LiveRequest) -> None:
        """A request ran to its end; of the guaranteed ones, tell kept from missed."""
        self.finished += 1
        if request.guaranteed:
            if request.meter.attainment().kept:
                self.kept += 1
            else:
                self.missed += 1

    def message(self) -> inference_pb2.Counters:
        return inference_pb2.Counters(**asdict(self))
