"""Workers and requests as the admission core is told of them, without a router."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from services.slo.admission import (
    AdmissionCore,
    AdmissionOptions,
    Arrival,
    Assessment,
    Progress,
    RequestFacts,
    Role,
    WorkerFacts,
    WorkerState,
)
from services.slo.attainment import AttainmentMeter
from services.slo.composer import Limits
from services.slo.contract import Contract, DecodeTarget, OnOverload, PrefillTarget
from services.slo.performance import PerformanceCoefficients

START_S = 1000.0
"""When tests begin, so that a time and a duration cannot be taken for each other."""
PRIOR = PerformanceCoefficients(0.010, 0.0001, 0.0, 0.0, "measured")
"""100 tokens take 20 ms by the expected time."""
LIMITS = Limits(max_step_tokens=2048, max_running_requests=16, block_tokens=16)
KV_BLOCKS = 1000
"""16,000 tokens of KV cache."""


def worker_facts(worker_id: str, group: str = "g") -> WorkerFacts:
    """Return a prefill worker if the id begins with a p, else a decode worker."""
    role = Role.PREFILL if worker_id.startswith("p") else Role.DECODE
    return WorkerFacts(worker_id, role, group, PRIOR, LIMITS, KV_BLOCKS, 1000)


def contract(
    ttft_s: float | None = None, tpot_s: float | None = None, *, refuse: bool = False, value: float = 1.0
) -> Contract:
    return Contract(
        prefill=None if ttft_s is None else PrefillTarget(ttft_s=ttft_s),
        decode=() if tpot_s is None else (DecodeTarget(tpot_s),),
        on_overload=OnOverload.REFUSE if refuse else OnOverload.BEST_EFFORT,
        value=value,
    )


class Blocks:
    """A prompt of given tokens; its blocks are named by all tokens up to their end."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = tuple(prompt)

    def of(self, block_tokens: int) -> Sequence[Hashable]:
        return [self.prompt[:end] for end in range(block_tokens, len(self.prompt), block_tokens)]


def prompt_of(tokens: int) -> Blocks:
    """Return a prompt that begins as every other of these."""
    return Blocks(range(100, 100 + tokens))


@dataclass(slots=True, eq=False)
class Tracked:
    """An admitted request. Satisfies `TrackedRequest`."""

    facts: RequestFacts
    meter: AttainmentMeter
    prompt_worker_id: str
    decode_worker_id: str
    guaranteed: bool
    planned: bool
    rank_s: float
    progress: Progress = Progress.QUEUED
    submitted_s: float = 0.0
    prefilled_tokens: int = 0
    generated_tokens: int = 0

    @property
    def next_due_s(self) -> float | None:
        return self.meter.next_due_s()

    @property
    def tightest_tpot_s(self) -> float | None:
        return self.meter.tightest_tpot_s()


@dataclass(slots=True)
class Desk:
    """A core over workers that do nothing, and the requests that it took."""

    worker_ids: tuple[str, ...] = ("p1", "d1")
    options: AdmissionOptions = field(default_factory=AdmissionOptions)
    core: AdmissionCore = field(init=False)
    taken: dict[str, Tracked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.core = AdmissionCore(self.options)
        for worker_id in self.worker_ids:
            self.core.joined(worker_facts(worker_id))

    def worker(self, worker_id: str) -> WorkerState:
        return self.core.cluster.workers[worker_id]

    def arrival(self, request_id: str, prompt_tokens: int, wanted: Contract, at_s: float = START_S) -> Arrival:
        told = RequestFacts(request_id, prompt_tokens, max_tokens=50, blocks=prompt_of(prompt_tokens))
        return Arrival(told, wanted, at_s)

    def assess(self, request_id: str, prompt_tokens: int, wanted: Contract, now_s: float = START_S) -> Assessment:
        answer = self.core.assess(self.arrival(request_id, prompt_tokens, wanted, now_s), now_s)
        assert isinstance(answer, Assessment), answer
        return answer

    def take(self, arrival: Arrival, assessment: Assessment) -> Tracked:
        """Do what a router does with an admitted request."""
        placement = assessment.placement
        tracked = Tracked(
            arrival.facts,
            AttainmentMeter(assessment.contract, arrival.arrival_s, arrival.task_due_s),
            placement.prefill_worker_id,
            placement.decode_worker_id,
            assessment.guaranteed,
            assessment.guaranteed,
            placement.due_s,
        )
        self.core.filed(tracked)
        self.taken[arrival.request_id] = tracked
        return tracked

    def admit(self, request_id: str, prompt_tokens: int, wanted: Contract, now_s: float = START_S) -> Tracked:
        """Assess a request and take it."""
        arrival = self.arrival(request_id, prompt_tokens, wanted, now_s)
        return self.take(arrival, self.assess(request_id, prompt_tokens, wanted, now_s))

    def start_prefill(self, tracked: Tracked, worker_id: str | None = None, at_s: float = START_S) -> None:
        tracked.prompt_worker_id = worker_id or tracked.prompt_worker_id
        tracked.submitted_s = at_s
        tracked.progress = Progress.PREFILLING
        self.core.filed(tracked)

    def start_decode(self, tracked: Tracked) -> None:
        tracked.progress = Progress.DECODING
        self.core.filed(tracked)
