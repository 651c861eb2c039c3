"""Every call of an admission core as a value that can be written down, and carried out on another core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from services.slo.admission.assessment import Assessment, Unservable
from services.slo.admission.core import AdmissionCore
from services.slo.admission.other_work import NO_OTHERS, OtherWork
from services.slo.admission.pending import AdmissionRound
from services.slo.admission.requests import Arrival, Progress, RequestFacts, TrackedRequest
from services.slo.admission.workers import WorkerFacts, WorkerLoad
from services.slo.contract import Contract
from services.slo.latency_forecast import Placement
from services.slo.performance import StepShape


@dataclass(frozen=True, slots=True)
class RecordedBlocks:
    """The blocks of a prompt under names that tell nothing of its tokens. Satisfies `PromptBlocks`."""

    by_size: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Names of its blocks, by the number of tokens in a block."""

    def of(self, block_tokens: int) -> Sequence[str]:
        """Return the names of its blocks; none for a size that was not recorded."""
        return self.by_size.get(block_tokens, ())


@dataclass(frozen=True, slots=True)
class RecordedFacts:
    """`RequestFacts` with recorded blocks."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    tenant: str
    application: str
    expected_output_tokens: int | None
    blocks: RecordedBlocks

    @property
    def facts(self) -> RequestFacts:
        """The facts as a core is told of them."""
        return RequestFacts(
            self.request_id,
            self.prompt_tokens,
            self.max_tokens,
            self.tenant,
            self.application,
            self.expected_output_tokens,
            self.blocks,
        )


@dataclass(frozen=True, slots=True)
class RequestSnapshot:
    """What a core reads of an admitted request at one moment: see `TrackedRequest`."""

    progress: Progress
    prompt_worker_id: str
    decode_worker_id: str
    guaranteed: bool
    planned: bool
    rank_s: float
    submitted_s: float
    prefilled_tokens: int
    generated_tokens: int
    next_due_s: float | None
    tightest_tpot_s: float | None

    @classmethod
    def of(cls, request: TrackedRequest) -> RequestSnapshot:
        """Return what can be read of a request now."""
        return cls(
            request.progress,
            request.prompt_worker_id,
            request.decode_worker_id,
            request.guaranteed,
            request.planned,
            request.rank_s,
            request.submitted_s,
            request.prefilled_tokens,
            request.generated_tokens,
            request.next_due_s,
            request.tightest_tpot_s,
        )


class ReplayedRequest:
    """An admitted request in a replay. Satisfies `TrackedRequest`."""

    def __init__(self, facts: RequestFacts, now: RequestSnapshot) -> None:
        self.facts = facts
        self.now = now

    @property
    def progress(self) -> Progress:
        return self.now.progress

    @property
    def prompt_worker_id(self) -> str:
        return self.now.prompt_worker_id

    @property
    def decode_worker_id(self) -> str:
        return self.now.decode_worker_id

    @property
    def guaranteed(self) -> bool:
        return self.now.guaranteed

    @property
    def planned(self) -> bool:
        return self.now.planned

    @property
    def rank_s(self) -> float:
        return self.now.rank_s

    @property
    def submitted_s(self) -> float:
        return self.now.submitted_s

    @property
    def prefilled_tokens(self) -> int:
        return self.now.prefilled_tokens

    @property
    def generated_tokens(self) -> int:
        return self.now.generated_tokens

    @property
    def next_due_s(self) -> float | None:
        return self.now.next_due_s

    @property
    def tightest_tpot_s(self) -> float | None:
        return self.now.tightest_tpot_s


Requests = dict[str, ReplayedRequest]
"""The admitted requests of a replay, by id."""


# What a core is told.


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


# What a core is asked, with its answer.


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
Asked = Decided | Assessed | GaveRoom | PlacedAgain | Submitted | PromisedKv
Event = Told | Asked
