"""The router's virtual copy of each worker: what it is, what it holds, how fast it steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from router.cluster.engine_figures import EngineFigures
from services import wire
from services.engine.kv.compatibility import Compatibility, mismatches
from services.engine.protocol import EngineFacts, EngineLoad
from services.slo.composer import Composition
from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceModel, StepRegime, StepShape
from services.state.registry import WorkerRole
from slos_serve.v1 import worker_pb2

COVERAGE = 0.99
"""Promises are made against step times that this share of steps keeps. At overload the plan is tight at all times, and
about as many promises are kept as steps are within their bound."""
SUBMISSION_S = 4e-3
"""A request sent to a busy worker later than this before a step began is not in that step: engines compose a step
before the report of the one before is here."""

LEARN_TOGETHER = 16
"""Steps that are learnt from at once, unless somebody asks before: each alone takes five times as long, because nothing
of what it needs is in the processor's caches, and the tokens of the step wait for it."""


@dataclass(slots=True)
class WorkerView:
    """One connected worker. Requests are not kept here: the dispatcher knows where each is."""

    worker_id: str
    role: WorkerRole
    address: str
    facts: EngineFacts
    fit: StepTimeFit
    """Of its step times, without the latest steps: see `step_times`."""
    load: EngineLoad
    draining: bool = False
    steps: int = 0
    last_step_s: float = 0.0
    step_began_s: float = 0.0
    """When the step it is working on began, as far as the router can tell."""
    stopped_step_ends_s: float = 0.0
    """When that step ends at the latest, as it was expected with a prompt in it that has been given up since."""
    composed: tuple[tuple[float, int], Composition] | None = None
    """That step as it was composed here last; told by when it began and how many prompts are in it."""
    shared: bool = False
    """Other routers work with it as well."""
    others: wire.OtherWork = wire.NO_OTHERS
    """What it has promised to them."""
    others_told_s: float = 0.0
    learnt_handover_s: float = -math.inf
    steps_within_bound: int = 0
    """Of the steps that were learnt from."""
    alone: bool = False
    """A decode worker that no prefill worker computes prompts for."""
    engine: EngineFigures = field(default_factory=EngineFigures)
    detail: str = ""
    """Why it is not used; empty if it is."""
    _unlearnt: list[tuple[StepShape, float]] = field(default_factory=list)
    """The latest steps, and how long they took."""

    @classmethod
    def of(cls, description: wire.WorkerDescription, address: str) -> WorkerView:
        return cls(
            worker_id=description.worker_id,
            role=description.role,
            address=address,
            facts=description.facts,
            fit=StepTimeFit(description.facts.performance),
            load=description.load,
            draining=description.draining,
        )

    @property
    def step_times(self) -> StepTimeFit:
        """Learnt from all its steps."""
        if self._unlearnt:
            self._learn()
        return self.fit

    @property
    def model(self) -> PerformanceModel:
        """Expected step times."""
        return self.step_times.model()

    @property
    def bound(self) -> PerformanceModel:
        """Step times that `COVERAGE` of its steps keep."""
        return self.step_times.bound(COVERAGE)

    def step_time_bound(self) -> float:
        """What `COVERAGE` of the steps of its role keep, as a multiple of their expected time."""
        regime = StepRegime.PREFILL if self.role is WorkerRole.PREFILL else StepRegime.DECODE
        return self.bound.margins[regime]

    @property
    def bound_coverage(self) -> float:
        """Share of steps that took no longer than their bound said before they were seen; nominally `COVERAGE`."""
        self._learn()
        return self.steps_within_bound / self.steps if self.steps else 0.0

    @property
    def kv_tokens(self) -> int:
        return self.facts.kv_blocks_total * self.facts.compatibility.block_tokens

    def observe(self, report: worker_pb2.StepReport, now_s: float) -> None:
        """Correct the copy by what one engine step did; the next one begins with its report."""
        shape = wire.shape_from_wire(report.shape)
        self.steps += 1
        self._unlearnt.append((shape, report.duration_s))
        if len(self._unlearnt) >= LEARN_TOGETHER:
            self._learn()
        self.step_began_s = now_s
        self.stopped_step_ends_s = 0.0
        self.last_step_s = report.duration_s
        self.heard(report.load, now_s)
        self.engine.observe(wire.scheduling_from_wire(report.scheduling), report.duration_s)

    def _learn(self) -> None:
        for shape, took_s in self._unlearnt:
            self.steps_within_bound += took_s <= self.fit.bound_s(COVERAGE, shape)
            self.fit.observe(shape, took_s)
        self._unlearnt.clear()

    def heard(self, load: worker_pb2.WorkerLoad, now_s: float) -> None:
        """It tells its load."""
        self.load = wire.load_from_wire(load)
        self.shared = load.HasField("others")
        if self.shared or self.others is not wire.NO_OTHERS:
            self.others, self.others_told_s = wire.others_from_wire(load), now_s


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that may hand KV caches to each other."""

    prefill: tuple[WorkerView, ...]
    """Empty where decode workers compute all prompts themselves."""
    decode: tuple[WorkerView, ...]
    """At least one."""

    @property
    def lanes(self) -> tuple[WorkerView, ...]:
        """Those that prompts are meant for in the first place."""
        return self.prefill or self.decode


@dataclass(slots=True)
class ClusterView:
    """All connected workers."""

    model_name: str
    local_prefill: bool = False
    """Decode workers may compute prompts, so that a group needs no prefill worker."""
    workers: dict[str, WorkerView] = field(default_factory=dict)
    _groups: list[Group] | None = None
    """None until asked for: they are asked for in every round, and change when workers come and go."""

    def put(self, view: WorkerView) -> None:
        self.workers[view.worker_id] = view
        self._explain()

    def remove(self, worker_id: str) -> None:
        self.workers.pop(worker_id, None)
        self._explain()

    def usable(self, worker_id: str) -> bool:
        """Whether new work may go to this worker."""
        view = self.workers.get(worker_id)
        return view is not None and not view.draining and not view.detail

    def drain(self, worker_id: str) -> None:
        """Nothing new goes to it from now on."""
        self.workers[worker_id].draining = True
        self._groups = None

    def groups(self) -> list[Group]:
        """Every usable group, draining workers left out."""
        if self._groups is None:
            self._groups = self._group()
        return self._groups

    def _group(self) -> list[Group]:
        by_facts: dict[Compatibility, list[WorkerView]] = {}
        for view in self.workers.values():
            if not view.draining and view.facts.model == self.model_name:
                by_facts.setdefault(view.facts.compatibility, []).append(view)
        groups = [
            Group(
                prefill=tuple(view for view in views if view.role is WorkerRole.PREFILL),
                decode=tuple(view for view in views if view.role is WorkerRole.DECODE),
            )
            for views in by_facts.values()
        ]
        for group in groups:
            for view in group.decode:
                view.alone = not group.prefill
        return [group for group in groups if group.decode and (group.prefill or self.local_prefill)]

    def missing(self) -> str:
        """Why there is no usable group, in words; empty if there is one."""
        if self.groups():
            return ""
        ready = [view for view in self.workers.values() if not view.draining]
        details = [f"{view.worker_id}: {view.detail}" for view in ready if view.detail]
        if details:
            return "; ".join(details)
        roles = {view.role for view in ready}
        needed = (WorkerRole.DECODE,) if self.local_prefill else WorkerRole
        absent = [role.name.lower() for role in needed if role not in roles]
        return f"no {' and no '.join(absent)} worker is connected"

    def _explain(self) -> None:
        """Say for every worker why it is not used, if it is not."""
        self._groups = None
        for view in self.workers.values():
            view.detail = self._why_unused(view)

    def _why_unused(self, view: WorkerView) -> str:
        if view.facts.model != self.model_name:
            return f"serves model {view.facts.model!r}, this router serves {self.model_name!r}"
        others = [other for other in self.workers.values() if other.role is not view.role]
        differences = [mismatches(view.facts.compatibility, other.facts.compatibility) for other in others]
        if not others or any(not difference for difference in differences):
            return ""
        return f"does not match {others[0].worker_id}: {', '.join(differences[0])}"
