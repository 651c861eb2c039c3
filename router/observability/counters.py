"""Counts of events since the router started."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from router.requests.events import Refusal, RequestObserver
from router.requests.live_request import LiveRequest
from router.requests.request_record import Ending, RequestRecord
from services.rpc.errors import RequestError
from slos_serve.v1 import inference_pb2


@dataclass(slots=True)
class Counters(RequestObserver):
    """Counts requests, lost workers and rounds. The fields have the names of the wire message.

    Every request that was received is refused, finished, cancelled, failed, or still here.
    """

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

    def message(self) -> inference_pb2.Counters:
        """Return the counts as they go over the wire."""
        return inference_pb2.Counters(**asdict(self))

    def on_received(self) -> None:
        """Count a request."""
        self.received += 1

    def on_refused(self, refusal: Refusal) -> None:
        """Count a request that was not admitted."""
        self.refused += 1

    def on_admitted(self, request: LiveRequest) -> None:
        """Count a request by its verdict."""
        if request.guaranteed:
            self.guaranteed += 1
        else:
            self.best_effort += 1

    def on_restarted(self, request: LiveRequest) -> None:
        """Count a failed attempt."""
        self.restarts += 1

    def on_kv_recomputed(self, request: LiveRequest) -> None:
        """Count a KV cache that could not be pulled."""
        self.kv_recomputes += 1

    def on_ended(self, request: LiveRequest, record: RequestRecord, error: RequestError | None) -> None:
        """Count an end; of the guaranteed requests that ran to their end, tell the kept from the missed."""
        match record.ending:
            case Ending.CANCELLED:
                self.cancelled += 1
            case Ending.FAILED:
                self.failed += 1
            case _:
                self.finished += 1
                self.kept += record.ending is Ending.KEPT
                self.missed += record.ending is Ending.MISSED

    def on_worker_lost(self, worker_id: str) -> None:
        """Count a worker that was lost without having drained."""
        self.workers_lost += 1

    def on_round_ended(self, took_s: float) -> None:
        """Count a planning round and its duration."""
        self.rounds += 1
        self.planning_s += took_s
