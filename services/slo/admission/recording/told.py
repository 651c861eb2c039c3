"""Every call by which an admission core is told something, as a value that can be carried out on another core."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from services.slo.admission.core import AdmissionCore
from services.slo.admission.other_work import NO_OTHERS, OtherWork
from services.slo.admission.recording.snapshots import RecordedFacts, ReplayedRequest, Requests, RequestSnapshot
from services.slo.admission.requests import Arrival
from services.slo.admission.workers import WorkerFacts, WorkerLoad
from services.slo.contract import Contract
from services.slo.performance import StepShape


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is connected."""

    facts: WorkerFacts
    load: WorkerLoad
    kind: Literal["joined"] = "joined"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.joined(self.facts, self.load)


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is gone."""

    worker_id: str
    kind: Literal["left"] = "left"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.left(self.worker_id)


@dataclass(frozen=True, slots=True)
class Drains:
    """A worker takes nothing new."""

    worker_id: str
    kind: Literal["drains"] = "drains"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.drains(self.worker_id)


@dataclass(frozen=True, slots=True)
class Stepped:
    """An engine step has ended."""

    worker_id: str
    shape: StepShape
    duration_s: float
    load: WorkerLoad
    now_s: float
    others: OtherWork = NO_OTHERS
    kind: Literal["stepped"] = "stepped"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.stepped(self.worker_id, self.shape, self.duration_s, self.load, self.now_s, self.others)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker tells of its load between steps."""

    worker_id: str
    load: WorkerLoad
    now_s: float
    others: OtherWork = NO_OTHERS
    kind: Literal["loaded"] = "loaded"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.loaded(self.worker_id, self.load, self.now_s, self.others)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request wants a verdict."""

    facts: RecordedFacts
    contract: Contract
    arrival_s: float
    task_due_s: float | None
    kind: Literal["arrived"] = "arrived"

    @property
    def arrival(self) -> Arrival:
        """The request as a core is told of it."""
        return Arrival(self.facts.facts, self.contract, self.arrival_s, self.task_due_s)

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.arrived(self.arrival)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A request wants no verdict any more."""

    request_id: str
    kind: Literal["withdrawn"] = "withdrawn"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.withdrawn(self.request_id)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request is among the admitted ones from now on; `Filed` follows."""

    facts: RecordedFacts
    now: RequestSnapshot
    kind: Literal["admitted"] = "admitted"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        requests[self.facts.request_id] = ReplayedRequest(self.facts.facts, self.now)


@dataclass(frozen=True, slots=True)
class Changed:
    """An admitted request reads as follows from now on."""

    request_id: str
    now: RequestSnapshot
    kind: Literal["changed"] = "changed"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        requests[self.request_id].now = self.now


@dataclass(frozen=True, slots=True)
class Advanced:
    """A stream has so many tokens from now on, and its next one is due then; nothing else has changed."""

    request_id: str
    generated_tokens: int
    next_due_s: float | None
    kind: Literal["advanced"] = "advanced"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        request = requests[self.request_id]
        request.now = replace(request.now, generated_tokens=self.generated_tokens, next_due_s=self.next_due_s)


@dataclass(frozen=True, slots=True)
class Filed:
    """An admitted request is found by its progress and its workers as they are."""

    request_id: str
    kind: Literal["filed"] = "filed"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.filed(requests[self.request_id])


@dataclass(frozen=True, slots=True)
class Grew:
    """Streams on a worker have produced tokens."""

    worker_id: str
    tokens: int
    kind: Literal["grew"] = "grew"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.grew(self.worker_id, self.tokens)


@dataclass(frozen=True, slots=True)
class Removed:
    """An admitted request has ended."""

    request_id: str
    complete: bool
    kind: Literal["removed"] = "removed"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.removed(requests.pop(self.request_id), complete=self.complete)


@dataclass(frozen=True, slots=True)
class Stopping:
    """A worker is told to let go of a request."""

    request_id: str
    now_s: float
    kind: Literal["stopping"] = "stopping"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.stopping(requests[self.request_id], self.now_s)


@dataclass(frozen=True, slots=True)
class PromptComputed:
    """A worker has computed a prompt."""

    request_id: str
    believed_tokens: int
    cached_tokens: int
    kind: Literal["prompt_computed"] = "prompt_computed"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.prompt_computed(requests[self.request_id], self.believed_tokens, self.cached_tokens)


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A request goes on where its KV cache was pulled to."""

    request_id: str
    kv_bytes: int
    transfer_s: float
    wait_s: float
    now_s: float
    kind: Literal["handed_over"] = "handed_over"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        request = requests[self.request_id]
        core.handed_over(request, self.kv_bytes, self.transfer_s, self.wait_s, self.now_s)


@dataclass(frozen=True, slots=True)
class PlanningTook:
    """A round is over."""

    began_s: float
    planning_s: float
    kind: Literal["planning_took"] = "planning_took"

    def happen(self, core: AdmissionCore, requests: Requests) -> None:
        core.planning_took(self.began_s, self.planning_s)


Told = (
    Joined
    | Left
    | Drains
    | Stepped
    | Loaded
    | Arrived
    | Withdrawn
    | Admitted
    | Changed
    | Advanced
    | Filed
    | Grew
    | Removed
    | Stopping
    | PromptComputed
    | HandedOver
    | PlanningTook
)
