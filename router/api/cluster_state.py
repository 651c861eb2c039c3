"""Reports of the cluster as one router sees it, for operators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from router.admission.admission_loop import AdmissionLoop
from router.admission.quota_desk import QuotaDesk
from router.api.verdict_message import rate_limit_messages
from router.cluster.cluster_view import ClusterView, WorkerView
from router.cluster.links import WorkerLinks
from router.observability.counters import Counters
from router.observability.history import History, Tally
from router.process_rank import ProcessRank
from router.requests.live_requests import LiveRequests
from router.requests.output_coalescer import OutputCoalescer
from router.requests.request_record import Ending, RequestRecord
from services import wire
from services.rpc.errors import NO_WORKERS
from services.state.connection import StateConnection
from services.state.registry import WorkerRecord
from slos_serve.v1 import inference_pb2

RECENT_S = 300.0
"""Seconds of the past whose outcomes are summed up by profile."""
SHOWN_TROUBLE = 10
SHOWN_TENANTS = 100
"""Tenants whose quotas are told at most: a credential may prove any number of them."""


class ClusterReporter:
    """Tells operators the state of the cluster as this router sees it."""

    def __init__(
        self,
        *,
        router_id: str,
        rank: ProcessRank,
        cluster: ClusterView,
        links: WorkerLinks,
        requests: LiveRequests,
        admission_loop: AdmissionLoop,
        counters: Counters,
        history: History,
        state: StateConnection,
        coalescer: OutputCoalescer,
        quotas: QuotaDesk,
        clock: Callable[[], float],
    ) -> None:
        """Start the router's uptime.

        Args:
            clock: the monotonic clock that `history` runs on.
        """
        self.console_url = ""
        """Address of this router's console; empty if it has none."""
        self.metrics_address = ""
        """host:port of this router's page for Prometheus; empty if it has none."""
        self._router_id = router_id
        self._rank = rank
        self._cluster = cluster
        self._links = links
        self._requests = requests
        self._admission_loop = admission_loop
        self._counters = counters
        self._history = history
        self._state = state
        self._coalescer = coalescer
        self._quotas = quotas
        self._clock = clock
        self._started_s = clock()
        self._latest: tuple[float, inference_pb2.ClusterState] | None = None

    def recent(self, max_age_s: float) -> inference_pb2.ClusterState:
        """Return a state of the cluster that is at most so many seconds old; it must not be changed."""
        now_s = self._clock()
        if self._latest is None or now_s - self._latest[0] > max_age_s:
            self._latest = (now_s, self.message())
        return self._latest[1]

    def client_message(self) -> inference_pb2.ClusterState:
        """Return what a client needs that may not observe the cluster: nothing of workers, routers and addresses."""
        ready = self._cluster.ready
        warnings = [] if ready else [NO_WORKERS]
        return inference_pb2.ClusterState(ready=ready, model=self._cluster.model_name, warnings=warnings)

    def message(self) -> inference_pb2.ClusterState:
        """Return the state of the cluster at this moment. Workers that are registered only are shown as connecting."""
        now_s, cluster = self._clock(), self._cluster
        missing, redis_problem = cluster.missing(), describe_redis_problem(self._state)
        queued = self._requests.queued_count()
        state = inference_pb2.ClusterState(
            router_id=self._router_id,
            process=self._rank.process,
            processes=self._rank.processes,
            ready=not missing,
            model=cluster.model_name,
            uptime_s=now_s - self._started_s,
            queued_requests=queued,
            running_requests=len(self._requests) - queued,
            held_requests=self._admission_loop.held,
            counters=self._counters.message(),
            redis_connected=not redis_problem,
            metrics_address=self.metrics_address,
            warnings=[
                warning
                for warning in (
                    *(missing, redis_problem, self._coalescer.warning, self._quotas.warning),
                    *self._links.warnings,
                )
                if warning
            ],
            console_url=self.console_url,
            recent_s=RECENT_S,
        )
        registered, unproven = self._links.registered, self._links.unproven
        state.workers.extend(_connected(view, registered.get(view.worker_id)) for view in cluster.workers.values())
        state.workers.extend(
            _connecting(record, unproven.get(record.worker_id, ""))
            for record in registered.values()
            if record.worker_id not in cluster.workers
        )
        state.workers.sort(key=lambda worker: (worker.role, worker.worker_id))
        totals = self._history.windows.totals(now_s - RECENT_S, now_s)
        state.profiles.extend(_profile(name, totals[name]) for name in sorted(totals))
        tenants = islice(self._quotas.tenants(), SHOWN_TENANTS)
        state.tenants.extend(
            inference_pb2.TenantState(tenant=name, limits=rate_limit_messages(limits)) for name, limits in tenants
        )
        state.trouble.extend(_trouble(record, now_s) for record in self._history.trouble(SHOWN_TROUBLE))
        return state


def describe_redis_problem(state: StateConnection) -> str:
    """Return why Redis cannot be used; empty if it can."""
    return "" if state.connected else f"Redis at {state.url} is unreachable"


def _connecting(record: WorkerRecord, detail: str) -> inference_pb2.WorkerState:
    return inference_pb2.WorkerState(
        worker_id=record.worker_id,
        role=wire.role_to_wire(record.role),
        address=record.address,
        engine_epoch=record.engine_epoch,
        health=inference_pb2.WORKER_HEALTH_CONNECTING,
        emulated=record.emulated,
        detail=detail,
        metrics_address=record.metrics_address,
    )


def _connected(view: WorkerView, record: WorkerRecord | None) -> inference_pb2.WorkerState:
    health = inference_pb2.WORKER_HEALTH_READY
    if view.detail:
        health = inference_pb2.WORKER_HEALTH_INCOMPATIBLE
    elif view.draining:
        health = inference_pb2.WORKER_HEALTH_DRAINING
    return inference_pb2.WorkerState(
        worker_id=view.worker_id,
        role=wire.role_to_wire(view.role),
        address=view.address,
        engine_epoch=view.facts.engine_epoch,
        health=health,
        running_requests=view.load.running_requests,
        waiting_requests=view.load.waiting_requests,
        kv_blocks_total=view.load.kv_blocks_total,
        kv_blocks_used=view.load.kv_blocks_used,
        kv_blocks_leased=view.load.kv_blocks_leased,
        steps=view.state.steps,
        last_step_s=view.state.last_step_s,
        step_time_scale=view.step_times.scale,
        step_time_error=view.step_times.error(),
        step_time_bound=view.state.step_time_bound(),
        step_bound_coverage=view.state.bound_coverage,
        emulated=view.facts.emulated,
        detail=view.detail,
        scheduling=view.engine.message(),
        metrics_address="" if record is None else record.metrics_address,
    )


def _profile(name: str, tally: Tally) -> inference_pb2.ProfileState:
    return inference_pb2.ProfileState(
        profile=name,
        kept=tally.ended[Ending.KEPT],
        missed=tally.ended[Ending.MISSED],
        best_effort=tally.ended[Ending.UNPROMISED],
        cancelled=tally.ended[Ending.CANCELLED],
        failed=tally.ended[Ending.FAILED],
        refused=tally.refused_by,
        missed_in={phase.value: count for phase, count in tally.broken_by.items()},
        mean_phases=inference_pb2.Phases(
            **{f"{phase.value}_s": spent_s / max(1, tally.served) for phase, spent_s in tally.phases_s.items()}
        ),
    )


def _trouble(record: RequestRecord, now_s: float) -> inference_pb2.Trouble:
    missed = "" if record.attainment is None else record.attainment.missed
    return inference_pb2.Trouble(
        request_id=record.request_id,
        profile=record.profile,
        ended_before_s=now_s - record.ended_s,
        what=record.detail or missed,
        phase="" if record.broken_by is None else record.broken_by.value,
        prefill_worker_id=record.prefill_worker_id,
        decode_worker_id=record.decode_worker_id,
        restarts=record.restarts,
    )
