"""The workers that this router is connected to: what operators are told of them, and what admission is told."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from router.cluster.engine_figures import EngineFigures
from services import wire
from services.engine.kv.compatibility import Compatibility, mismatches
from services.engine.protocol import EngineFacts, EngineLoad
from services.slo.admission import AdmissionCore, Role, WorkerFacts, WorkerLoad, WorkerState
from services.slo.composer import Limits
from services.slo.fitting import StepTimeFit
from services.state.registry import WorkerRole
from slos_serve.v1 import worker_pb2

log = logging.getLogger(__name__)


@dataclass(slots=True)
class WorkerView:
    """One connected worker. What admission knows of it is in `state`; requests are not kept here."""

    worker_id: str
    role: WorkerRole
    address: str
    facts: EngineFacts
    times: StepTimeFit
    """Step times as learnt, without the latest steps: `state` has all of them."""
    state: WorkerState
    load: EngineLoad
    shared: bool = False
    """Whether other routers work with it as well."""
    engine: EngineFigures = field(default_factory=EngineFigures)
    detail: str = ""
    """Why it is not used; empty if it is."""
    disbelieved_reports: int = 0
    """Number of its reports whose figures made no sense."""

    @property
    def step_times(self) -> StepTimeFit:
        """Step times learnt from all its steps."""
        self.state.learn()
        return self.times

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new."""
        return self.state.draining

    def disbelieve(self, error: wire.WireError) -> None:
        """Count a report whose figures make no sense, and say so in the log for the first one."""
        if not self.disbelieved_reports:
            log.warning("worker %s reports figures that make no sense and are not used: %s", self.worker_id, error)
        self.disbelieved_reports += 1


class ClusterView:
    """All connected workers. Whatever a worker tells goes through here to the admission core."""

    def __init__(self, model_name: str, core: AdmissionCore) -> None:
        """Begin without workers.

        Args:
            model_name: workers that serve another model are not used.
        """
        self.model_name = model_name
        self.workers: dict[str, WorkerView] = {}
        self._core = core

    def put(self, description: wire.WorkerDescription, address: str) -> WorkerView:
        """Take a worker in that has described itself."""
        facts = description.facts
        times = StepTimeFit(facts.performance)
        admitted = _facts_for_admission(description, self.model_name)
        self._core.joined(admitted, _load_for_admission(description.load), times)
        state = self._core.cluster.workers[description.worker_id]
        view = WorkerView(description.worker_id, description.role, address, facts, times, state, description.load)
        self.workers[view.worker_id] = view
        if description.draining:
            self._core.drains(view.worker_id)
        self._explain()
        return view

    def remove(self, worker_id: str) -> None:
        """Let a worker go that is gone."""
        self.workers.pop(worker_id, None)
        self._core.left(worker_id)
        self._explain()

    def drain(self, worker_id: str) -> None:
        """Give nothing new to a worker from now on."""
        self._core.drains(worker_id)

    def stepped(self, view: WorkerView, report: worker_pb2.StepReport, now_s: float) -> None:
        """Take the report of one engine step; figures that make no sense are counted and not believed."""
        try:
            load, others = self._hear(view, report.load)
            shape, scheduling = wire.shape_from_wire(report.shape), wire.scheduling_from_wire(report.scheduling)
            duration_s = wire.duration_from_wire(report)
        except wire.WireError as error:
            view.disbelieve(error)
            return
        self._core.stepped(view.worker_id, shape, duration_s, load, now_s, others)
        view.engine.observe(scheduling, duration_s)

    def heard(self, view: WorkerView, load: worker_pb2.WorkerLoad, now_s: float) -> None:
        """Take what a worker tells of its load between steps; figures that make no sense are not believed."""
        try:
            told, others = self._hear(view, load)
        except wire.WireError as error:
            view.disbelieve(error)
            return
        self._core.loaded(view.worker_id, told, now_s, others)

    def usable(self, worker_id: str) -> bool:
        """Return whether new work may go to this worker."""
        return self._core.cluster.usable(worker_id)

    @property
    def ready(self) -> bool:
        """Whether there are workers that could serve a request."""
        return bool(self._core.cluster.groups())

    def missing(self) -> str:
        """Return why no request could be served, in words; empty if one could."""
        if self.ready:
            return ""
        ready = [view for view in self.workers.values() if not view.draining]
        details = [f"{view.worker_id}: {view.detail}" for view in ready if view.detail]
        if details:
            return "; ".join(details)
        roles = {view.role for view in ready}
        needed = (WorkerRole.DECODE,) if self._core.options.local_prefill else WorkerRole
        absent = [role.name.lower() for role in needed if role not in roles]
        return f"no {' and no '.join(absent)} worker is connected"

    def _hear(self, view: WorkerView, load: worker_pb2.WorkerLoad) -> tuple[WorkerLoad, wire.OtherWork]:
        told, others = wire.load_from_wire(load), wire.others_from_wire(load)
        view.load, view.shared = told, load.HasField("others")
        return _load_for_admission(told), others

    def _explain(self) -> None:
        """Say for every worker why it is not used, if it is not."""
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


def _facts_for_admission(description: wire.WorkerDescription, model_name: str) -> WorkerFacts:
    facts = description.facts
    return WorkerFacts(
        worker_id=description.worker_id,
        role=Role.PREFILL if description.role is WorkerRole.PREFILL else Role.DECODE,
        group=_group(facts.compatibility),
        prior=facts.performance,
        limits=Limits(facts.max_step_tokens, facts.max_running_requests, facts.compatibility.block_tokens),
        kv_blocks=facts.kv_blocks_total,
        kv_bytes_per_token=facts.kv_bytes_per_token,
        max_step_s=facts.max_step_s,
        serves=facts.model == model_name,
    )


def _group(compatibility: Compatibility) -> str:
    """Return a name that workers share if and only if they can hand KV caches to each other."""
    return repr(compatibility)


def _load_for_admission(load: EngineLoad) -> WorkerLoad:
    return WorkerLoad(load.running_requests, load.kv_blocks_leased)
