"""The router's virtual copy of each worker: what it is, what it holds, how fast it steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from router.live_request import LiveRequest
from services.engine.compatibility import Compatibility, mismatches
from services.engine.protocol import EngineFacts, EngineLoad
from services.rpc import wire
from services.slo.admission import DecodeView, PrefillView, QueuedPrefill, finish_times_s
from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceModel, StepRegime
from services.state.journal import RequestState
from services.state.registry import WorkerRole
from slos_serve.v1 import worker_pb2

COVERAGE = 0.95
"""Promises are made against step times that this share of steps keeps."""


@dataclass(slots=True)
class WorkerView:
    """One connected worker. Requests are not kept here: the dispatcher knows where each is."""

    worker_id: str
    role: WorkerRole
    address: str
    facts: EngineFacts
    step_times: StepTimeFit
    load: EngineLoad
    draining: bool = False
    steps: int = 0
    last_step_s: float = 0.0
    step_began_s: float = 0.0
    """When the step it is working on began, as far as the router can tell."""
    detail: str = ""
    """Why it is not used; empty if it is."""

    @classmethod
    def of(cls, description: wire.WorkerDescription, address: str) -> WorkerView:
        return cls(
            worker_id=description.worker_id,
            role=description.role,
            address=address,
            facts=description.facts,
            step_times=StepTimeFit(description.facts.performance),
            load=description.load,
            draining=description.draining,
        )

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
    def kv_tokens(self) -> int:
        return self.facts.kv_blocks_total * self.facts.compatibility.block_tokens

    def observe(self, report: worker_pb2.StepReport, now_s: float) -> None:
        """Correct the copy by what one engine step did; the next one begins with its report."""
        self.steps += 1
        self.step_began_s = now_s
        self.last_step_s = report.duration_s
        self.load = wire.load_from_wire(report.load)
        self.step_times.observe(wire.shape_from_wire(report.shape), report.duration_s)


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that may hand KV caches to each other, with at least one of each role."""

    prefill: tuple[WorkerView, ...]
    decode: tuple[WorkerView, ...]


@dataclass(slots=True)
class ClusterView:
    """All connected workers."""

    model_name: str
    workers: dict[str, WorkerView] = field(default_factory=dict)

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

    def groups(self) -> list[Group]:
        """Every usable group, draining workers left out."""
        by_facts: dict[Compatibility, list[WorkerView]] = {}
        for view in self.workers.values():
            if not view.draining and view.facts.model == self.model_name:
                by_facts.setdefault(view.facts.compatibility, []).append(view)
        groups = (
            Group(
                prefill=tuple(view for view in views if view.role is WorkerRole.PREFILL),
                decode=tuple(view for view in views if view.role is WorkerRole.DECODE),
            )
            for views in by_facts.values()
        )
        return [group for group in groups if group.prefill and group.decode]

    def missing(self) -> str:
        """Why there is no usable group, in words; empty if there is one."""
        if self.groups():
            return ""
        ready = [view for view in self.workers.values() if not view.draining]
        details = [f"{view.worker_id}: {view.detail}" for view in ready if view.detail]
        if details:
            return "; ".join(details)
        roles = {view.role for view in ready}
        absent = [role.name.lower() for role in WorkerRole if role not in roles]
        return f"no {' and no '.join(absent)} worker is connected"

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


def prefill_views(
    workers: Iterable[WorkerView], requests: Iterable[LiveRequest], now_s: float
) -> tuple[PrefillView, ...]:
    """What the planner sees of the prefill workers, requests that wait in the router included."""
    requests = list(requests)
    return tuple(_prefill_view(worker, requests, now_s) for worker in workers)


def _prefill_view(worker: WorkerView, requests: list[LiveRequest], now_s: float) -> PrefillView:
    given = [
        request
        for request in requests
        if request.state is RequestState.PREFILLING and request.prefill_worker_id == worker.worker_id
    ]
    held = [
        request
        for request in requests
        if request.state is RequestState.QUEUED and request.placement.prefill_worker_id == worker.worker_id
    ]
    limit = worker.facts.max_step_tokens
    running = [_queued_prefill(request) for request in given if request.submitted_s <= worker.step_began_s]
    ends_s = finish_times_s(running, worker.step_began_s, worker.model, limit)
    return PrefillView(
        worker_id=worker.worker_id,
        model=worker.model,
        bound=worker.bound,
        max_step_tokens=limit,
        busy_until_s=max([now_s, *ends_s]),
        waiting=tuple(_queued_prefill(request) for request in given if request.submitted_s > worker.step_began_s),
        queue=tuple(_queued_prefill(request) for request in sorted(held, key=lambda request: request.due_s)),
        kv_tokens=worker.kv_tokens,
    )


def _queued_prefill(request: LiveRequest) -> QueuedPrefill:
    return QueuedPrefill(request.due_s, request.context_tokens, request.guaranteed)


def decode_views(workers: Iterable[WorkerView], requests: Iterable[LiveRequest]) -> tuple[DecodeView, ...]:
    """What the planner sees of the decode workers: requests count there from the moment they are placed."""
    requests = list(requests)
    views = []
    for worker in workers:
        placed = [request for request in requests if request.decode_worker_id == worker.worker_id]
        promised = [
            tpot_s
            for request in placed
            if request.guaranteed and (tpot_s := request.meter.current_tpot_s()) is not None
        ]
        views.append(
            DecodeView(
                worker_id=worker.worker_id,
                model=worker.model,
                bound=worker.bound,
                requests=len(placed),
                context_tokens=sum(request.context_tokens for request in placed),
                tightest_tpot_s=min(promised, default=None),
                max_running_requests=worker.facts.max_running_requests,
                kv_tokens_free=worker.kv_tokens - sum(request.full_tokens for request in placed),
                kv_tokens=worker.kv_tokens,
            )
        )
    return tuple(views)
