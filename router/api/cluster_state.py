"""The cluster as the router sees it, for operators."""

from __future__ import annotations

from collections.abc import Mapping

from router.cluster.cluster_view import ClusterView, WorkerView
from router.observability.counters import Counters
from router.observability.history import History, Tally
from router.process_rank import ProcessRank
from router.requests.request_record import Ending, RequestRecord
from services import wire
from services.state.registry import WorkerRecord
from slos_serve.v1 import inference_pb2

RECENT_S = 300.0
SHOWN_TROUBLE = 10


def cluster_state(
    router_id: str,
    place: ProcessRank,
    uptime_s: float,
    cluster: ClusterView,
    registered: Mapping[str, WorkerRecord],
    requests: int,
    queued: int,
    held: int,
    counters: Counters,
    redis_problem: str,
    saturation: str,
    history: History,
    now_s: float,
    console_url: str,
    metrics_address: str,
) -> inference_pb2.ClusterState:
    """
    Args:
        requests, queued: admitted, and how many of them wait in the router.
        held: without a verdict.
        registered: what the registry last said; workers that are not connected yet are shown as connecting.
        redis_problem: why Redis cannot be used; empty if it can.
        now_s: on the clock of `history`.
        console_url: where this router's console is; empty if nowhere.
        metrics_address: where this router's metrics are; empty if nowhere.
    """
    missing = cluster.missing()
    state = inference_pb2.ClusterState(
        router_id=router_id,
        process=place.process,
        processes=place.processes,
        ready=not missing,
        model=cluster.model_name,
        uptime_s=uptime_s,
        queued_requests=queued,
        running_requests=requests - queued,
        held_requests=held,
        counters=counters.message(),
        redis_connected=not redis_problem,
        metrics_address=metrics_address,
        warnings=[warning for warning in (missing, redis_problem, saturation) if warning],
        console_url=console_url,
        recent_s=RECENT_S,
    )
    state.workers.extend(_connected(view, registered.get(view.worker_id)) for view in cluster.workers.values())
    state.workers.extend(
        inference_pb2.WorkerState(
            worker_id=record.worker_id,
            role=wire.role_to_wire(record.role),
            address=record.address,
            engine_epoch=record.engine_epoch,
            health=inference_pb2.WORKER_HEALTH_CONNECTING,
            emulated=record.emulated,
            metrics_address=record.metrics_address,
        )
        for record in registered.values()
        if record.worker_id not in cluster.workers
    )
    totals = history.windows.totals(now_s - RECENT_S, now_s)
    state.profiles.extend(_profile(name, totals[name]) for name in sorted(totals))
    state.trouble.extend(_trouble(record, now_s) for record in history.trouble(SHOWN_TROUBLE))
    state.workers.sort(key=lambda worker: (worker.role, worker.worker_id))
    return state


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
        steps=view.steps,
        last_step_s=view.last_step_s,
        step_time_scale=view.step_times.scale,
        step_time_error=view.step_times.error(),
        step_time_bound=view.step_time_bound(),
        step_bound_coverage=view.bound_coverage,
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
