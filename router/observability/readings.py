"""Metrics that are read from the router's own figures whenever somebody scrapes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from services.telemetry.catalogue import router as catalogue
from services.telemetry.credentials import observe_credentials
from services.telemetry.meters import Meters, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.cluster.cluster_view import ClusterView, WorkerView
    from router.observability.counters import Counters
    from router.requests.live_requests import LiveRequests
    from services.identity.authenticator import Authenticator
    from services.slo.admission import AdmissionCore


def observe(
    meters: Meters,
    counters: Counters,
    requests: LiveRequests,
    cluster: ClusterView,
    core: AdmissionCore,
    credentials: Authenticator | None,
) -> None:
    """Have the meters read the router's figures.

    Args:
        credentials: None where no credentials are checked.
    """
    if credentials is not None:
        observe_credentials(meters, credentials)
    meters.observe_one(catalogue.REQUESTS_RECEIVED, lambda: counters.received)
    meters.observe_one(catalogue.REQUESTS_RESTARTED, lambda: counters.restarts)
    meters.observe_one(catalogue.WORKERS_LOST, lambda: counters.workers_lost)
    meters.observe_one(catalogue.KV_RECOMPUTES, lambda: counters.kv_recomputes)
    meters.observe_one(catalogue.REQUESTS_QUEUED, requests.queued_count)
    meters.observe_one(catalogue.REQUESTS_HELD, lambda: core.pending)
    meters.observe_one(catalogue.REQUESTS_RUNNING, lambda: len(requests) - requests.queued_count())

    def workers() -> list[WorkerView]:
        return list(cluster.workers.values())

    def per_worker(read: Callable[[WorkerView], float]) -> Callable[[], list[Reading]]:
        return lambda: [(read(view), _labels(view)) for view in workers()]

    meters.observe(catalogue.WORKERS, lambda: _by_health(workers()))
    meters.observe(catalogue.WORKER_STEPS, per_worker(lambda view: view.state.steps))
    meters.observe(catalogue.WORKER_STEPS_WITHIN_BOUND, per_worker(lambda view: view.state.steps_within_bound))
    meters.observe(catalogue.WORKER_STEP_ERROR, per_worker(lambda view: view.times.error()))
    meters.observe(catalogue.DISBELIEVED_REPORTS, per_worker(lambda view: view.disbelieved_reports))
    meters.observe(catalogue.LEASED_BLOCKS_IN_USE, lambda: _leased_blocks(requests, workers()))


def _labels(view: WorkerView) -> dict[str, str]:
    return {catalogue.WORKER: view.worker_id, catalogue.ROLE: view.role.value}


def _by_health(workers: list[WorkerView]) -> list[Reading]:
    found = Counter((view.role.value, _health(view)) for view in workers)
    return [(count, {catalogue.ROLE: role, catalogue.HEALTH: health}) for (role, health), count in found.items()]


def _health(view: WorkerView) -> str:
    return "incompatible" if view.detail else "draining" if view.draining else "ready"


def _leased_blocks(requests: LiveRequests, workers: list[WorkerView]) -> list[Reading]:
    blocks: Counter[str] = Counter()
    for request in requests:
        lease = request.lease
        if lease is not None:
            blocks[lease.handle.worker_id] += lease.handle.blocks
    return [
        (blocks[view.worker_id], {catalogue.WORKER: view.worker_id}) for view in workers if view.role.value == "prefill"
    ]
