"""Every question to an admission core with its answer, as a value that can be asked of another core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.slo.admission.assessment import Assessment, Unservable
from services.slo.admission.core import AdmissionCore
from services.slo.admission.pending import AdmissionRound
from services.slo.admission.recording.snapshots import Requests
from services.slo.admission.recording.told import Arrived
from services.slo.latency_forecast import Placement


@dataclass(frozen=True, slots=True)
class Decided:
    """A round decided about every request without a verdict."""

    now_s: float
    answer: AdmissionRound
    kind: Literal["decided"] = "decided"

    def happen(self, core: AdmissionCore, requests: Requests) -> AdmissionRound:
        return core.decide(self.now_s)


@dataclass(frozen=True, slots=True)
class Assessed:
    """A request that is not to be taken was assessed."""

    arrived: Arrived
    now_s: float
    answer: Assessment | Unservable
    kind: Literal["assessed"] = "assessed"

    def happen(self, core: AdmissionCore, requests: Requests) -> Assessment | Unservable:
        return core.assess(self.arrived.arrival, self.now_s)


@dataclass(frozen=True, slots=True)
class GaveRoom:
    """Requests that had outwaited their patience were given room, or none was."""

    now_s: float
    answer: tuple[tuple[str, Placement], ...]
    """Request ids with their placements."""
    kind: Literal["gave_room"] = "gave_room"

    def happen(self, core: AdmissionCore, requests: Requests) -> tuple[tuple[str, Placement], ...]:
        return tuple((given.request.facts.request_id, given.placement) for given in core.give_room(self.now_s))


@dataclass(frozen=True, slots=True)
class PlacedAgain:
    """A request whose worker was gone was placed again."""

    request_id: str
    now_s: float
    answer: Placement | Unservable
    kind: Literal["placed_again"] = "placed_again"

    def happen(self, core: AdmissionCore, requests: Requests) -> Placement | Unservable:
        return core.place_again(requests[self.request_id], self.now_s)


@dataclass(frozen=True, slots=True)
class Submitted:
    """Prompts that waited for a worker went there."""

    worker_id: str
    now_s: float
    answer: tuple[tuple[str, int], ...]
    """Request ids with the tokens that the worker was thought to have cached."""
    kind: Literal["submitted"] = "submitted"

    def happen(self, core: AdmissionCore, requests: Requests) -> tuple[tuple[str, int], ...]:
        return tuple(
            (submission.request.facts.request_id, submission.believed_cached_tokens)
            for submission in core.to_submit(self.worker_id, self.now_s)
        )


@dataclass(frozen=True, slots=True)
class PromisedKv:
    """The memory that a request is promised was asked for."""

    request_id: str
    answer: int
    """Context tokens."""
    kind: Literal["promised_kv"] = "promised_kv"

    def happen(self, core: AdmissionCore, requests: Requests) -> int:
        return core.promised_kv_tokens(requests[self.request_id])


@dataclass(frozen=True, slots=True)
class PlanningFailed:
    """A question that is answered by planning ended with an error, and changed in the core what it did until then."""

    question: Literal["decide", "assess", "give_room"]
    now_s: float
    answer: str
    """Name of the error's type."""
    arrived: Arrived | None = None
    """The request that was to be assessed."""
    kind: Literal["planning_failed"] = "planning_failed"

    def happen(self, core: AdmissionCore, requests: Requests) -> str:
        try:
            if self.arrived is not None:
                core.assess(self.arrived.arrival, self.now_s)
            elif self.question == "give_room":
                core.give_room(self.now_s)
            else:
                core.decide(self.now_s)
        except Exception as error:  # noqa: BLE001 - whatever is wrong in the code that is replayed is to be compared
            return type(error).__name__
        return "no error"


Asked = PlanningFailed | Decided | Assessed | GaveRoom | PlacedAgain | Submitted | PromisedKv
