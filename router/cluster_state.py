"""The cluster as the router sees it, for operators."""

from __future__ import annotations

from collections.abc import Mapping

from router.cluster_view import ClusterView, WorkerView
from router.counters import Counters
from services.rpc import wire
from services.state.registry import WorkerRecord
from slos_serve.v1 import inference_pb2


def cluster_state(
    router_id: str,
    uptime_s: float,
    cluster: ClusterView,
    registered: Mapping[str, WorkerRecord],
    requests: int,
    queued: int,
    held: int,
    counters: Counters,
    redis_problem: str,
) -> inference_pb2.ClusterState:
    """
    Args:
        requests, queued: admitted, and how many of them wait in the router.
        held: without a verdict.
        registered: what the registry last said; workers that are not connected yet are shown as connecting.
        redis_problem: why Redis cannot be used; empty if it can.
    """
    state = inference_pb2.ClusterState(
        router_id=router_id,
        model=cluster.model_name,
        uptime_s=uptime_s,
        queued_requests=queued,
        running_requests=requests - queued,
        held_requests=held,
        counters=counters.message(),
        redis_connected=not redis_problem,
        warnings=[warning for warning in (cluster.missing(), redis_problem) if warning],
    )
    state.workers.extend(_connected(view) for view in cluster.workers.values())
    state.workers.extend(
        inference_pb2.WorkerState(
            worker_id=record.worker_id,
            role=wire.role_to_wire(record.role),
            address=record.address,
            engine_epoch=record.engine_epoch,
            health=inference_pb2.WORKER_HEALTH_CONNECTING,
            emulated=record.emulated,
        )
        for record in registered.values()
        if record.worker_id not in cluster.workers
    )
    state.workers.sort(key=lambda worker: (worker.role, worker.worker_id))
    return state


def _connected(view: WorkerView) -> inference_pb2.WorkerState:
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
    )
