"""The workers of a cluster as admission knows them: what each is, how fast it steps, and which can work together."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Protocol

from services.slo.admission.other_work import NO_OTHERS, OtherWork
from services.slo.composer import Composition, Limits
from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepRegime, StepShape

LEARN_TOGETHER = 16
"""Steps that are learnt from at once, unless somebody asks before: each alone takes five times as long, because nothing
of what it needs is in the processor's caches, and the tokens of the step wait for it."""


class Role(enum.Enum):
    """The pool that a worker belongs to."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The facts about a worker that stay the same while it is connected."""

    worker_id: str
    role: Role
    group: str
    """Workers of the same group can hand KV caches to each other."""
    prior: PerformanceCoefficients
    """Step times that the worker expects of itself before any step was seen."""
    limits: Limits
    kv_blocks: int
    """Blocks of `limits.block_tokens` tokens that the worker's KV cache has in all."""
    kv_bytes_per_token: int
    max_step_s: float = math.inf
    """Duration beyond which the worker's composer makes no step longer, whatever the step computes."""
    serves: bool = True
    """Whether the worker serves the model that requests are for; no other worker is used."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that the worker's KV cache holds in all."""
        return self.kv_blocks * self.limits.block_tokens


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """The load that a worker last reported."""

    running_requests: int = 0
    kv_blocks_leased: int = 0
    """Blocks of KV caches that wait to be pulled from it."""


IDLE = WorkerLoad()


class StepTimes(Protocol):
    """Expected step times of a worker and bounds on them, learnt from its steps; `StepTimeFit` is what ships."""

    def observe(self, shape: StepShape, duration_s: float) -> None: ...
    def model(self) -> PerformanceModel: ...
    def bound(self, coverage: float) -> PerformanceModel: ...
    def bound_s(self, coverage: float, shape: StepShape) -> float: ...


@dataclass(slots=True)
class WorkerState:
    """One connected worker. Owned by one event loop."""

    facts: WorkerFacts
    coverage: float
    """Share of its steps that keep the bound."""
    times: StepTimes
    """Its step times without the latest steps: ask `step_times`."""
    load: WorkerLoad = IDLE
    draining: bool = False
    steps: int = 0
    last_step_s: float = 0.0
    step_began_s: float = 0.0
    """When the step it is working on began, as far as can be told from its reports."""
    stopped_step_ends_s: float = 0.0
    """When that step ends at the latest, as it was expected with a prompt in it that has been given up since."""
    composed: tuple[tuple[float, int], Composition] | None = None
    """That step as it was composed here last, told by when it began and how many prompts are in it."""
    others: OtherWork = NO_OTHERS
    """What it has promised to other routers."""
    others_told_s: float = 0.0
    learnt_handover_s: float = -math.inf
    steps_within_bound: int = 0
    """Number of steps that kept their bound, of those that were learnt from."""
    alone: bool = False
    """It is a decode worker that no prefill worker computes prompts for."""
    _unlearnt: list[tuple[StepShape, float]] = field(default_factory=list)
    """The latest steps and their durations in seconds."""

    @property
    def worker_id(self) -> str:
        return self.facts.worker_id

    @property
    def decodes(self) -> bool:
        return self.facts.role is Role.DECODE

    def learn(self) -> None:
        """Learn from the latest steps now."""
        for shape, took_s in self._unlearnt:
            self.steps_within_bound += took_s <= self.times.bound_s(self.coverage, shape)
            self.times.observe(shape, took_s)
        self._unlearnt.clear()

    @property
    def step_times(self) -> StepTimes:
        """Step times learnt from all its steps."""
        if self._unlearnt:
            self.learn()
        return self.times

    @property
    def model(self) -> PerformanceModel:
        """Expected step times."""
        return self.step_times.model()

    @property
    def bound(self) -> PerformanceModel:
        """Step times that `coverage` of its steps keep."""
        return self.step_times.bound(self.coverage)

    def step_time_bound(self) -> float:
        """Return what `coverage` of the steps of its role keep, as a multiple of their expected time."""
        return self.bound.margins[StepRegime.DECODE if self.decodes else StepRegime.PREFILL]

    @property
    def bound_coverage(self) -> float:
        """Share of steps that took no longer than their bound said before they were seen; nominally `coverage`."""
        self.learn()
        return self.steps_within_bound / self.steps if self.steps else 0.0

    def stepped(self, shape: StepShape, duration_s: float, now_s: float) -> None:
        """Note a step that ended; the next one begins with its report."""
        self.steps += 1
        self._unlearnt.append((shape, duration_s))
        if len(self._unlearnt) >= LEARN_TOGETHER:
            self.learn()
        self.step_began_s = now_s
        self.stopped_step_ends_s = 0.0
        self.last_step_s = duration_s

    def told(self, load: WorkerLoad, others: OtherWork, now_s: float) -> None:
        """Note what the worker tells of its load and of the work of other routers."""
        self.load = load
        self.others, self.others_told_s = others, now_s


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that may hand KV caches to each other."""

    prefill: tuple[WorkerState, ...]
    """Empty where decode workers compute all prompts themselves."""
    decode: tuple[WorkerState, ...]
    """At least one."""

    @property
    def first_choice(self) -> tuple[WorkerState, ...]:
        """Workers that prompts are meant for in the first place."""
        return self.prefill or self.decode


class Cluster:
    """All connected workers, and the groups in which they can serve."""

    def __init__(self, *, local_prefill: bool, coverage: float) -> None:
        self.workers: dict[str, WorkerState] = {}
        self._local_prefill = local_prefill
        self._coverage = coverage
        self._groups: list[Group] | None = None
        """None until asked for: groups are asked for in every round, and change when workers come and go."""
        self._usable: set[str] = set()

    def join(self, facts: WorkerFacts, load: WorkerLoad, times: StepTimes | None = None) -> WorkerState:
        """Take a worker in; one of the same id is replaced.

        Args:
            times: its step times; by default they are learnt, from its own prior on.
        """
        worker = WorkerState(facts, self._coverage, times or StepTimeFit(facts.prior), load)
        self.workers[facts.worker_id] = worker
        self._groups = None
        return worker

    def leave(self, worker_id: str) -> None:
        """Let a worker go; unknown ones are ignored."""
        self.workers.pop(worker_id, None)
        self._groups = None

    def drain(self, worker_id: str) -> None:
        """Give nothing new to a worker from now on; unknown ones are ignored."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.draining = True
            self._groups = None

    @property
    def block_tokens(self) -> int:
        """Tokens in a KV block of the workers that serve; all of a group have the same."""
        return next((worker.facts.limits.block_tokens for worker in self.workers.values()), 1)

    def usable(self, worker_id: str) -> bool:
        """Return whether new work may go to this worker: it belongs to a group that can serve, and does not drain."""
        self.groups()
        return worker_id in self._usable

    def groups(self) -> list[Group]:
        """Return every group that can serve a request from its prompt to its end."""
        if self._groups is None:
            self._groups = self._group()
            self._usable = {worker.worker_id for group in self._groups for worker in (*group.prefill, *group.decode)}
        return self._groups

    def _group(self) -> list[Group]:
        by_group: dict[str, list[WorkerState]] = {}
        for worker in self.workers.values():
            if worker.facts.serves and not worker.draining:
                by_group.setdefault(worker.facts.group, []).append(worker)
        groups = [
            Group(
                prefill=tuple(worker for worker in workers if not worker.decodes),
                decode=tuple(worker for worker in workers if worker.decodes),
            )
            for workers in by_group.values()
        ]
        for group in groups:
            for worker in group.decode:
                worker.alone = not group.prefill
        return [group for group in groups if group.decode and (group.prefill or self._local_prefill)]
